//! What every Runcast broker must do: one suite, one named test a case. A dev-dependency only.
//!
//! An adapter runs it with one line in an integration test:
//!
//! ```
//! # use runcast_broker_conformance::Backend;
//! async fn open() -> Option<Backend> {
//!     // connect under a namespace nobody else uses; `None` when there is no server to test against
//!     # None
//! }
//!
//! runcast_broker_conformance::suite!(backend = open, time = real);
//! ```
//!
//! A case that needs what the backend does not offer (see [`Backend`]) says so on stderr and passes.
//!
//! Cases wait for conditions, each for at most [`DEADLINE`]; they sleep only where the passing of time
//! is what they check. Delays and times to live are a second or more, because brokers keep them with
//! a granularity of about [`GRANULARITY`].

mod backend;
#[doc(hidden)]
pub mod cases;
mod harness;
mod log;
mod proxy;

pub use backend::{Backend, Missing};
pub use harness::{DEADLINE, GRANULARITY, Outcome, Time, run};
pub use log::Log;
pub use proxy::{Mode, Proxy};

/// Expands to one `#[test]` a case.
///
/// - `backend`: an `async fn` (or a closure that returns a future) without arguments, called once a
///   case, that gives a [`Backend`] nobody else uses, or `Option<Backend>`, where `None` skips the
///   case because the server to test against is not there.
/// - `time`: `paused` for an adapter that lives by tokio's clock alone, `real` for one that talks to
///   a server.
#[macro_export]
macro_rules! suite {
    (@time paused) => { $crate::Time::Paused };
    (@time real) => { $crate::Time::Real };
    (@cases $backend:expr, $time:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::run(stringify!($case), $time, $backend, $crate::cases::$case);
            }
        )*
    };
    (backend = $backend:expr, time = $time:ident $(,)?) => {
        $crate::suite! { @cases $backend, $crate::suite!(@time $time);
            // queues
            a_published_message_is_delivered_once_and_gone_after_ack
            deliveries_follow_publish_order
            an_earlier_queue_goes_first
            a_publish_wakes_a_waiting_consumer
            a_nacked_message_comes_back_after_its_delay
            a_message_nacked_without_delay_comes_back_at_once
            an_unknown_queue_is_empty
            depths_count_ready_outstanding_and_dead
            an_oversized_message_is_refused_as_permanent
            // consumers
            prefetch_bounds_outstanding_deliveries
            two_consumers_share_a_queue_without_duplicates
            a_dropped_delivery_returns_to_the_head
            a_dropped_consumer_returns_what_it_held
            a_delivery_that_outlives_its_consumer_cannot_be_settled
            next_is_cancellation_safe
            a_cancelled_wait_leaves_the_message_to_others
            try_next_takes_what_is_ready
            // dead letters
            a_rejected_message_is_a_dead_letter_with_its_reason
            dead_letters_page_requeue_and_purge
            dead_letters_of_one_queue_are_not_those_of_another
            // announcements
            a_watch_sees_what_is_announced_after_it_is_in_place
            announcements_keep_their_order
            two_watchers_each_get_every_announcement
            topics_do_not_leak
            watching_is_cancellation_safe
            // presence
            presence_is_listed_renewed_and_vanishes
            a_zero_ttl_removes_presence
            // life cycle
            health_answers
            close_ends_waiting_consumers_and_watches
            close_is_idempotent
            publish_after_close_is_refused
            settling_after_close_is_refused
            // several processes
            another_process_consumes_what_was_published
            another_process_watches_what_was_announced
            another_process_sees_presence
            close_returns_outstanding_deliveries
            // restarts
            messages_survive_a_broker_restart
            a_consumer_goes_on_after_a_broker_restart
            a_watch_reports_a_gap_after_a_broker_restart
        }
    };
}
