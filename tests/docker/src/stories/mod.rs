//! What is tried, and what must come of it.
//!
//! Each story begins with nothing mapped and must leave nothing behind: no mount, no device, no record, no mapping.

mod checklist;
mod crash;
mod crowd;
mod database;
mod engine;
mod hostile;
mod hosts;
mod images;
mod installed;
mod managed;
mod many;
mod swarm;
mod tls;
mod walk;

use crate::site::{Plan, Site};

/// A story.
pub struct Story {
    /// Its name, a promise.
    pub name: &'static str,
    /// Not for every run.
    pub is_long: bool,
    /// Tells it.
    pub tell: fn(&mut Site) -> anyhow::Result<()>,
}

const fn short(name: &'static str, tell: fn(&mut Site) -> anyhow::Result<()>) -> Story {
    Story { name, is_long: false, tell }
}

const fn long(name: &'static str, tell: fn(&mut Site) -> anyhow::Result<()>) -> Story {
    Story { name, is_long: true, tell }
}

/// All of them, in order.
pub const ALL: &[Story] = &[
    short("data_outlives_its_container", walk::data_outlives_its_container),
    short("options_are_checked_and_kept", walk::options_are_checked_and_kept),
    short("every_mount_is_counted_by_its_id", walk::every_mount_is_counted_by_its_id),
    short("anonymous_volumes_come_and_go", walk::anonymous_volumes_come_and_go),
    short("what_is_not_there_is_said_to_be_missing", walk::what_is_not_there_is_said_to_be_missing),
    short("every_use_makes_the_calls_that_it_must", checklist::every_use_makes_the_calls_that_it_must),
    short("questions_are_asked_once", checklist::questions_are_asked_once),
    short("a_name_belongs_to_one_driver", checklist::a_name_belongs_to_one_driver),
    short("a_killed_plugin_loses_no_count", crash::a_killed_plugin_loses_no_count),
    short("a_killed_engine_leaves_no_mount_for_ever", crash::a_killed_engine_leaves_no_mount_for_ever),
    short("an_engine_is_ended_in_good_order", crash::an_engine_is_ended_in_good_order),
    short("a_killed_data_client_is_a_pause", crash::a_killed_data_client_is_a_pause),
    short("what_cannot_be_asked_is_not_forgotten", crash::what_cannot_be_asked_is_not_forgotten),
    short("a_volume_is_on_one_host_at_a_time", hosts::a_volume_is_on_one_host_at_a_time),
    short("a_host_that_is_cut_off_loses_the_volume", hosts::a_host_that_is_cut_off_loses_the_volume_and_cleans_up),
    short("hostile_requests_make_nothing", hostile::hostile_requests_get_an_error_and_make_nothing),
    long("a_warm_volume_is_mounted_soon", many::a_warm_volume_is_mounted_within_300_ms),
    long("nothing_is_left_by_killed_operations", many::nothing_is_left_by_operations_that_were_killed),
    long("an_engine_speaks_tls", tls::an_engine_speaks_tls_with_both_certificates),
    long("the_managed_plugin_serves_too", managed::the_managed_plugin_serves_the_same_volumes),
    long("a_service_is_moved_off_a_lost_node", swarm::a_service_whose_node_is_cut_off_runs_elsewhere),
    long("a_service_waits_for_its_plugin", swarm::a_service_waits_for_its_plugin),
    long("a_database_loses_no_transaction", database::a_database_loses_no_transaction),
    long("ten_thousand_volumes_are_listed", many::ten_thousand_volumes_are_listed),
    long("a_crowd_leaves_nothing", crowd::a_crowd_that_is_killed_at_random_leaves_nothing),
    long("counts_are_recovered", checklist::counts_are_recovered),
    long("drivers_that_are_down_or_late", engine::drivers_that_are_down_or_late_hold_up_only_their_own),
    long("an_engine_that_starts_again", engine::an_engine_that_starts_again_makes_nothing_anew),
    long("containers_live_through_their_engine", engine::containers_live_through_their_engine),
    long("a_system_runs_from_its_images", images::a_system_runs_from_its_images),
    long("the_managed_plugin_is_installed", installed::the_managed_plugin_is_installed_set_and_upgraded),
];

/// Shorter spans than the defaults, so that stories are short.
const PLUGIN: &str = "preempt_grace_s = 5\nrelease_unused_s = 6\nhold_s = 2\nmount_timeout_s = 15\n";

/// The site that the stories need.
pub fn plan() -> Plan {
    Plan { mdm: 3, sds: 3, hosts: 3, plugin_config: PLUGIN.to_owned() }
}
