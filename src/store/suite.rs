//! What every store must do, written once against the contract. Each adapter's tests expand the suite
//! to one named test a case: `store_suite!(sqlite, Harness::fresh())`.

mod claiming;
mod committing;
mod creating;
mod crowd;
mod history;
pub(crate) mod kit;
mod moving;
mod nodes;
mod reading;
mod recovering;
mod schedules;
mod sharing;
pub(crate) mod threads;
mod webhooks;

use std::sync::Arc;

use async_trait::async_trait;

use super::Store;

pub(crate) use claiming::*;
pub(crate) use committing::*;
pub(crate) use creating::*;
pub(crate) use crowd::*;
pub(crate) use history::*;
pub(crate) use moving::*;
pub(crate) use nodes::*;
pub(crate) use reading::*;
pub(crate) use recovering::*;
pub(crate) use schedules::*;
pub(crate) use sharing::*;
pub(crate) use threads::*;
pub(crate) use webhooks::*;

/// A store of its own for each case.
#[async_trait]
pub(crate) trait Harness: Send {
    /// The store as it is open now.
    fn store(&self) -> Arc<dyn Store>;

    /// The same data through another node, if the store is one for many.
    fn another(&self) -> Arc<dyn Store> {
        self.store()
    }

    /// Opens the data again as it would be found after `kill -9` at this moment, and when the leases of that
    /// time have ended.
    async fn restart(&mut self) -> Arc<dyn Store>;
}

/// Expands to a module with a test for each case. `$fresh` makes a [`Harness`] over an empty store.
macro_rules! store_suite {
    ($name:ident, $fresh:expr) => {
        crate::store::suite::store_suite! { @cases $name, $fresh;
            a_run_is_found_as_it_was_created
            a_scheduled_run_is_found_as_it_was_created
            a_key_finds_the_run_of_the_first_request
            a_key_with_another_body_is_refused
            keys_are_per_tenant_and_route
            of_many_requests_with_one_key_one_creates_a_run
            a_forgotten_key_is_free_again
            no_more_runs_are_accepted_than_may_wait
            one_bad_creation_in_a_burst_fails_alone
            a_retry_takes_over_the_finished_steps
            a_retry_of_steps_that_are_gone_creates_nothing
            claims_go_by_priority_then_age
            only_known_agents_and_versions_are_claimed
            no_run_is_claimed_twice
            a_claim_writes_what_it_returns
            a_claim_takes_the_time_to_live_away
            commits_are_written_in_order
            a_run_is_found_as_it_ended
            an_older_attempt_is_fenced_off
            what_is_open_is_kept_and_charged_when_it_is_lost
            a_retry_knows_what_was_cut_off
            a_commit_whose_answer_was_lost_is_done
            a_commit_out_of_turn_is_fenced_off
            a_cancel_stops_a_finish_and_no_token
            a_stale_finish_is_fenced_off_though_a_cancel_waits
            a_failed_attempt_waits_for_its_timer
            a_released_run_can_be_claimed_at_once
            a_run_that_waits_can_be_cancelled
            a_cancel_of_a_running_run_is_kept_for_its_owner
            what_is_asked_of_many_runs_at_once_is_answered_for_each
            every_other_command_to_a_running_run_is_rejected
            nothing_moves_a_run_that_has_ended
            a_run_that_is_not_there_is_missing
            a_run_expires_with_all_its_timers
            a_stale_timer_changes_nothing_and_can_be_dropped
            timers_are_listed_in_order_and_by_pages
            runs_are_listed_by_stable_pages
            runs_are_listed_by_each_filter
            a_log_can_be_read_from_every_number
            a_deleted_run_leaves_nothing
            only_runs_that_have_ended_are_deleted
            everything_survives_a_restart
            a_run_without_owner_gets_another_attempt
            a_run_that_kills_its_workers_fails
            a_cancel_that_waited_is_carried_out
            runs_are_recovered_by_portions_and_once
            runs_claimed_after_the_start_are_left_alone
            an_attempt_that_lost_its_owner_is_given_up
            runs_of_a_claim_whose_answer_was_lost_are_let_go
            an_owner_extends_what_is_still_its_own
            heads_tell_how_logs_stand
            queued_runs_are_counted_by_agent_and_version
            depths_tell_what_waits_where
            a_failed_run_leaves_a_dead_letter
            a_run_that_was_recovered_for_the_last_time_leaves_a_dead_letter
            dead_letters_are_listed_by_pages_and_discarded
            a_schedule_is_found_as_it_was_created_with_its_timer
            schedules_are_listed_by_stable_pages
            a_key_finds_the_schedule_of_the_first_request
            of_many_requests_with_one_key_one_creates_a_schedule
            a_schedule_advances_once_for_each_number
            a_deleted_schedule_leaves_nothing
            a_run_that_is_there_already_is_found
            runs_are_removed_when_they_ended_long_ago
            several_nodes_remove_each_run_once
            the_first_node_decides_what_is_agreed
            a_flood_of_one_tenant_does_not_delay_another
            tenants_are_served_by_their_weights
            runs_created_together_are_spread_as_well
            runs_whose_timers_fire_together_are_spread_as_well
            priority_goes_before_fairness
            agents_of_one_priority_take_turns
            a_run_that_comes_back_keeps_its_place
            a_run_that_was_delayed_stands_in_line
            the_order_survives_a_restart
            a_limit_is_never_exceeded_and_always_used
            what_is_limited_is_passed_over
            agents_and_keys_have_limits
            limits_count_what_runs_after_a_restart
            a_tenant_has_a_bound_of_its_own
            depths_are_told_by_tenant
            limits_hold_in_any_history
            every_end_of_a_run_is_told_once_whatever_brought_it
            a_run_that_was_recovered_for_the_last_time_is_told
            only_who_wants_the_news_is_told_them
            news_of_a_thread_are_told_with_their_data
            what_is_old_is_removed_once_it_is_told_with_its_deliveries_and_letters
            a_delivery_is_its_claims_until_the_lease_ends
            a_delivery_that_failed_is_due_again_after_its_wait
            a_delivery_that_is_given_up_leaves_a_letter_and_can_be_sent_again
            endpoints_are_kept_changed_and_removed
            an_endpoint_is_created_once_for_its_key_and_not_too_many
            a_secret_is_rotated_once_for_its_key
            a_disabled_endpoint_gets_nothing_more
            deliveries_are_listed_by_pages_and_filters
            deliveries_go_with_their_run_and_with_time
            threads_are_created_listed_changed_and_removed
            a_run_is_shown_what_was_said_before_it
            messages_that_come_quickly_become_one_run
            a_run_whose_time_has_come_waits_for_its_thread
            a_busy_thread_takes_what_comes_as_it_is_told
            a_holder_that_has_no_owner_makes_room_at_once
            what_a_run_said_is_dropped_if_that_is_wanted
            a_run_looks_at_what_it_was_handed_before_it_completes
            people_take_a_thread_over_and_give_it_back
            what_a_run_said_before_it_waited_is_kept_whoever_ends_it
            a_follow_up_is_armed_until_someone_speaks
            a_follow_up_can_be_put_off_or_off_altogether
            where_nothing_is_let_in_nothing_is_counted
            a_retry_takes_its_messages_over
            a_message_comes_in_once_under_its_key
            a_question_is_answered_once
            a_question_that_nobody_answers_ends_its_run
            a_lost_holder_makes_room_for_the_next
            no_thread_has_two_active_runs
            the_end_of_a_run_is_written_once
            threads_that_are_idle_are_removed
            many_messages_at_once_keep_their_order_and_their_runs
            counts_match_a_scan_after_any_history
            a_closed_store_refuses_everything
        }
    };
    (@cases $name:ident, $fresh:expr; $($case:ident)*) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    crate::store::suite::$case(&mut $fresh).await;
                }
            )*
        }
    };
}
pub(crate) use store_suite;
