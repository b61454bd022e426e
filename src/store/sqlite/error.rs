//! Errors of SQLite in the words of the contract.

use rusqlite::ffi;

use crate::store::StoreError;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        let rusqlite::Error::SqliteFailure(code, _) = error else {
            // A column of another type than was written, a document that does not parse.
            return Self::Corrupt(text);
        };
        match code.extended_code {
            // The shared memory of the log could not grow.
            ffi::SQLITE_IOERR_SHMSIZE => return Self::Full(text),
            // A page that does not match the sum that goes with it.
            ffi::SQLITE_IOERR_CORRUPTFS | ffi::SQLITE_IOERR_DATA => return Self::Corrupt(text),
            _ => {}
        }
        match code.extended_code & 0xff {
            // SQLite reports a write that found no space left on the device as this, too.
            ffi::SQLITE_FULL => Self::Full(text),
            ffi::SQLITE_READONLY | ffi::SQLITE_CANTOPEN | ffi::SQLITE_PERM => Self::ReadOnly(text),
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_IOERR | ffi::SQLITE_NOMEM | ffi::SQLITE_INTERRUPT => {
                Self::Unavailable(text)
            }
            // SQLITE_CORRUPT and SQLITE_NOTADB; and what only a bug or a damaged schema can cause.
            _ => Self::Corrupt(text),
        }
    }
}
