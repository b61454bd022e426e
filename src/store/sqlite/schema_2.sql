-- What could not be done and waits for a person: failed runs, and messages that no run could be made of.
CREATE TABLE dead_letters (
    id      BLOB    NOT NULL PRIMARY KEY,
    at      INTEGER NOT NULL,
    source  TEXT    NOT NULL,
    run_id  BLOB,
    reason  TEXT    NOT NULL,
    payload BLOB    NOT NULL
) STRICT;

CREATE INDEX dead_letters_by_age ON dead_letters (at, id);

-- What is known of the store as a whole, one row.
CREATE TABLE stores (
    id        BLOB NOT NULL,
    mode      TEXT NOT NULL,
    namespace TEXT NOT NULL
) STRICT;
