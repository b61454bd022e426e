//! The cases, by topic. Each takes a backend of its own; its name says what has to hold.

mod announcements;
mod consumers;
mod dead_letters;
mod lifecycle;
mod presence;
mod processes;
mod queues;
mod restarts;

pub use announcements::*;
pub use consumers::*;
pub use dead_letters::*;
pub use lifecycle::*;
pub use presence::*;
pub use processes::*;
pub use queues::*;
pub use restarts::*;

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_the_suite() {
        let files = [
            include_str!("cases/announcements.rs"),
            include_str!("cases/consumers.rs"),
            include_str!("cases/dead_letters.rs"),
            include_str!("cases/lifecycle.rs"),
            include_str!("cases/presence.rs"),
            include_str!("cases/processes.rs"),
            include_str!("cases/queues.rs"),
            include_str!("cases/restarts.rs"),
        ];
        let listed: Vec<&str> = include_str!("lib.rs").split_whitespace().collect();
        let cases = files.iter().flat_map(|file| file.split("pub async fn ").skip(1));
        for case in cases.filter_map(|rest| rest.split('(').next()) {
            assert!(listed.contains(&case), "{case} is not in the suite");
        }
    }
}
