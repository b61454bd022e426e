//! What is logged, and how often.

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

/// Gathers what a thread logs, at every level.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Gathers the log of this thread until the guard is dropped.
    pub fn gather(&self) -> DefaultGuard {
        // As long as there is only one subscriber, the first thread that comes to an event decides by its own whether
        // anyone ever wants to hear of it.
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish()));
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// What was gathered so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }

    /// How often it says `what`.
    pub fn count(&self, what: &str) -> usize {
        self.text().matches(what).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Log;

    #[test]
    fn what_another_thread_came_to_first_is_gathered_all_the_same() {
        let happens = || tracing::info!("it happened");
        let log = Log::default();
        let _gathers = log.gather();
        std::thread::spawn(happens).join().unwrap();
        happens();
        assert_eq!(log.count("it happened"), 1, "{}", log.text());
    }
}
