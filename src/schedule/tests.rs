use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn timetable(cron: &str, zone: &str) -> Timetable {
    Timetable::parse(cron, zone).unwrap()
}

/// The firings after a time, as local times with their offsets.
#[track_caller]
fn fires(cron: &str, zone: &str, after: &str, expected: &[&str]) {
    let tz = zone::named(zone).unwrap();
    let local = |at: Timestamp| {
        let zoned = jiff::Timestamp::from_millisecond(at.as_millis()).unwrap().to_zoned(tz.clone());
        zoned.strftime("%F %T%:z").to_string()
    };
    let firings: Vec<_> = timetable(cron, zone).upcoming(time(after)).take(expected.len()).map(local).collect();
    assert_eq!(firings, expected, "{cron} in {zone}");
}

#[test]
fn plain_times_fire_strictly_after() {
    let (utc, noon) = ("UTC", "2026-03-01T12:00:00Z");
    fires("0 12 * * *", utc, noon, &["2026-03-02 12:00:00+00:00", "2026-03-03 12:00:00+00:00"]);
    fires("0 12 * * *", utc, "2026-03-01T11:59:59.999Z", &["2026-03-01 12:00:00+00:00"]);
    fires("*/20 * * * * *", utc, noon, &["2026-03-01 12:00:20+00:00", "2026-03-01 12:00:40+00:00"]);
    fires("@hourly", utc, noon, &["2026-03-01 13:00:00+00:00"]);
    fires("30 9 * * MON-FRI", utc, "2026-03-06T09:30:00Z", &["2026-03-09 09:30:00+00:00"]);
    // Either day suffices.
    fires("0 0 13 * 5", utc, "2026-03-06T01:00:00Z", &["2026-03-13 00:00:00+00:00", "2026-03-20 00:00:00+00:00"]);
    fires("0 9 * * 7", utc, noon, &["2026-03-08 09:00:00+00:00"]);
}

#[test]
fn leap_days_and_ends_of_months() {
    let utc = "UTC";
    fires("0 0 29 2 *", utc, "2026-01-01T00:00:00Z", &["2028-02-29 00:00:00+00:00", "2032-02-29 00:00:00+00:00"]);
    fires("0 0 29 2 *", utc, "2096-03-01T00:00:00Z", &["2104-02-29 00:00:00+00:00"]);
    fires(
        "0 0 31 * *",
        utc,
        "2026-01-31T00:00:00Z",
        &["2026-03-31 00:00:00+00:00", "2026-05-31 00:00:00+00:00", "2026-07-31 00:00:00+00:00"],
    );
    fires(
        "0 0 L * *",
        utc,
        "2027-12-31T00:00:00Z",
        &["2028-01-31 00:00:00+00:00", "2028-02-29 00:00:00+00:00", "2028-03-31 00:00:00+00:00"],
    );
}

#[test]
fn what_a_gap_skips_fires_once_right_after_it() {
    let berlin = "Europe/Berlin";
    let before = "2026-03-28T12:00:00Z";
    fires("30 2 * * *", berlin, before, &["2026-03-29 03:00:00+02:00", "2026-03-30 02:30:00+02:00"]);
    fires("0,30 2 * * *", berlin, before, &["2026-03-29 03:00:00+02:00", "2026-03-30 02:00:00+02:00"]);
    fires("30 2,3 * * *", berlin, before, &["2026-03-29 03:00:00+02:00", "2026-03-29 03:30:00+02:00"]);
    // What is due at that instant anyway fires once, too.
    fires("0 2,3 * * *", berlin, before, &["2026-03-29 03:00:00+02:00", "2026-03-30 02:00:00+02:00"]);
    fires("0 1 * * *", berlin, before, &["2026-03-29 01:00:00+01:00", "2026-03-30 01:00:00+02:00"]);
    let minutes = &["2026-03-29 01:58:00+01:00", "2026-03-29 01:59:00+01:00", "2026-03-29 03:00:00+02:00"];
    fires("* * * * *", berlin, "2026-03-29T00:57:30Z", minutes);
    let new_york = "America/New_York";
    fires("15 2 * * *", new_york, "2026-03-08T00:00:00Z", &["2026-03-08 03:00:00-04:00", "2026-03-09 02:15:00-04:00"]);
    // Half an hour is skipped there.
    let lord_howe = "Australia/Lord_Howe";
    let expected = &["2026-10-04 02:30:00+11:00", "2026-10-05 02:15:00+11:00"];
    fires("15 2 * * *", lord_howe, "2026-10-03T15:00:00Z", expected);
    fires("45 2 * * *", lord_howe, "2026-10-03T14:00:00Z", &["2026-10-04 02:45:00+11:00"]);
}

#[test]
fn a_time_that_occurs_twice_fires_once_unless_it_is_an_interval() {
    let berlin = "Europe/Berlin";
    let before = "2026-10-24T12:00:00Z";
    fires("30 2 * * *", berlin, before, &["2026-10-25 02:30:00+02:00", "2026-10-26 02:30:00+01:00"]);
    fires(
        "*/30 2,3 * * *",
        berlin,
        before,
        &[
            "2026-10-25 02:00:00+02:00",
            "2026-10-25 02:30:00+02:00",
            "2026-10-25 03:00:00+01:00",
            "2026-10-25 03:30:00+01:00",
        ],
    );
    // From between the two.
    fires("30 2 * * *", berlin, "2026-10-25T01:10:00Z", &["2026-10-26 02:30:00+01:00"]);
    fires(
        "*/30 * * * *",
        berlin,
        "2026-10-24T23:45:00Z",
        &[
            "2026-10-25 02:00:00+02:00",
            "2026-10-25 02:30:00+02:00",
            "2026-10-25 02:00:00+01:00",
            "2026-10-25 02:30:00+01:00",
            "2026-10-25 03:00:00+01:00",
        ],
    );
    fires(
        "30 1 * * *",
        "America/New_York",
        "2026-11-01T00:00:00Z",
        &["2026-11-01 01:30:00-04:00", "2026-11-02 01:30:00-05:00"],
    );
    fires(
        "45 1 * * *",
        "Australia/Lord_Howe",
        "2026-04-04T00:00:00Z",
        &["2026-04-05 01:45:00+11:00", "2026-04-06 01:45:00+10:30"],
    );
    fires(
        "45 * * * *",
        "Australia/Lord_Howe",
        "2026-04-04T14:00:00Z",
        &["2026-04-05 01:45:00+11:00", "2026-04-05 01:45:00+10:30", "2026-04-05 02:45:00+10:30"],
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    for cron in ["", "* * * *", "60 * * * *", "* * * * * * 2026", "nonsense", "0 25 * * *", "a b c d e", "*/0 * * * *"]
    {
        assert!(matches!(Timetable::parse(cron, "UTC"), Err(InvalidTimetable::Cron(_))), "{cron}");
    }
    assert!(matches!(Timetable::parse("* * * * *", "Mars/Base"), Err(InvalidTimetable::Zone(_))));
    assert!(matches!(Timetable::parse(&"1,".repeat(200), "UTC"), Err(InvalidTimetable::Cron(_))));
}

#[test]
fn what_never_fires_is_found_out_in_bounded_time() {
    let begun = std::time::Instant::now();
    for cron in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * * 31 2 *"] {
        assert_eq!(timetable(cron, "Europe/Berlin").next(time("2026-01-01T00:00:00Z")), None, "{cron}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_firing_that_is_late_is_missed_beyond_the_grace() {
    let grace = Duration::from_secs(60);
    let table = timetable("* * * * *", "UTC");
    let planned = time("2026-03-01T12:00:00Z");
    let decide = |missed, now| due(&table, missed, planned, time(now), grace);
    let firing = |runs, next| Firing { runs, next: Some(time(next)) };
    for missed in [Missed::RunOnce, Missed::Skip] {
        // A clock that lags is no reason to wait.
        assert_eq!(decide(missed, "2026-03-01T11:59:59Z"), firing(true, "2026-03-01T12:01:00Z"));
        assert_eq!(decide(missed, "2026-03-01T12:01:00Z"), firing(true, "2026-03-01T12:01:00Z"));
    }
    let late = "2026-03-01T15:30:20Z";
    assert_eq!(decide(Missed::RunOnce, late), firing(true, "2026-03-01T15:31:00Z"));
    assert_eq!(decide(Missed::Skip, late), firing(false, "2026-03-01T15:31:00Z"));
}

#[test]
fn the_run_of_a_firing_has_one_id_of_version_7() {
    let (schedule, planned) = (Uuid::from_u128(7), time("2026-03-01T12:00:00.123Z"));
    let id = run_id(schedule, planned);
    assert_eq!(id, run_id(schedule, planned));
    assert_eq!((id.as_uuid().get_version_num(), id.made_at()), (7, Some(planned)));
    assert_eq!(id.as_uuid().get_variant(), uuid::Variant::RFC4122);
    let others = [run_id(Uuid::from_u128(8), planned), run_id(schedule, planned.after(Duration::from_millis(1)))];
    assert!(!others.contains(&id));
    // Told here once and for all: nodes of different versions must agree.
    assert_eq!(id.to_string(), "019ca945-0a7b-738b-86a4-fe4180404e25");
}

const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Africa/Casablanca"];

fn field(most: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        (0..=most).prop_map(|one| one.to_string()),
        (1..=most).prop_map(|step| format!("*/{step}")),
        (0..=most, 0..=most).prop_map(|(a, b)| format!("{a},{b}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn firings_rise_strictly_and_no_named_hour_fires_twice(
        minute in field(59), hour in field(23), zone in 0..ZONES.len(),
        // Where the clocks change, and anywhere.
        near in 0..4_usize, off in -200_000_i64..200_000_i64,
    ) {
        let anchors = ["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-04-04T15:00:00Z", "2027-09-05T04:00:00Z"];
        let start = Timestamp::from_millis(time(anchors[near]).as_millis() + off * 1_000);
        let table = timetable(&format!("{minute} {hour} * * *"), ZONES[zone]);
        let tz = zone::named(ZONES[zone]).unwrap();
        let mut last = start;
        let mut locals = std::collections::HashSet::new();
        for firing in table.upcoming(start).take(60) {
            prop_assert!(firing > last, "{} then {}", last, firing);
            // Nothing lies between: whoever asks in between gets the same answer.
            let between = Timestamp::from_millis((last.as_millis() + firing.as_millis()) / 2);
            if between < firing {
                prop_assert_eq!(table.next(between), Some(firing));
            }
            let local = jiff::Timestamp::from_millisecond(firing.as_millis()).unwrap().to_zoned(tz.clone()).datetime();
            prop_assert!(locals.insert(local) || hour == "*" || hour == "*/1", "{} fires twice", local);
            last = firing;
        }
    }
}
