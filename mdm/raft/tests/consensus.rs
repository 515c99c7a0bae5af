//! Promises of a group of members, under faults, on virtual time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use mdm_raft::{ChangeError, DropReason, HaltReason, MdmId, MdmRole, MembersChange, Refusal, Settings};
use world::{Answer, World, member};

fn plain(_: &mut Settings) {}

fn small_logs(settings: &mut Settings) {
    settings.snapshot_entries = 20;
    settings.keep_entries = 5;
    settings.segment_bytes = 600;
}

/// One run with everything at once.
fn storm(seed: u64) -> u64 {
    let mut w = World::group(seed, 3, small_logs);
    if seed.is_multiple_of(3) {
        w.grow(4, MdmRole::Manager);
        w.grow(5, MdmRole::TieBreaker);
    }
    let size = w.hosts.len() as u64;
    (w.loss, w.repeat, w.delay_ms) = (w.random.below(8), 3, 1 + w.random.below(60));
    w.write_ms = 1 + w.random.below(60);
    for round in 0..100 {
        let victim = 1 + w.random.below(size);
        match w.random.below(9) {
            0 => w.crash(victim, true),
            1 => w.crash(victim, false),
            2 | 3 => w.start(victim),
            4 => w.isolate(victim),
            5 => {
                let other = 1 + w.random.below(size);
                w.cut.insert((victim, other));
            }
            6 => w.cut.clear(),
            7 if w.random.below(8) == 0 => (1..=size).for_each(|id| w.crash(id, true)),
            _ => {
                if let Some(leader) = w.leader() {
                    w.transfer(leader, victim);
                }
            }
        }
        for number in 0..w.random.below(6) {
            let at = 1 + w.random.below(size);
            w.propose(at, &format!("{round}.{number}"));
            if number == 3 {
                w.read(at);
            }
        }
        // Often short, so that faults meet writes that are under way.
        let span = if w.random.below(2) == 0 { 20 } else { 700 };
        let span = w.random.below(span);
        w.run(span);
    }
    w.cut.clear();
    (w.loss, w.delay_ms, w.write_ms) = (0, 5, 4);
    for id in 1..=size {
        w.start(id);
        assert_eq!(w.hosts[&id].open_error, None, "seed {seed}: an honest power cut looks like damage");
        assert_eq!(w.hosts[&id].halted, None, "seed {seed}: an honest member was stopped");
    }
    w.commit("after the storm");
    w.settle();
    w.trace
}

#[test]
fn committed_commands_survive_crashes_power_cuts_and_partitions() {
    for seed in 0..seeds() {
        let result = std::panic::catch_unwind(|| storm(seed));
        assert!(result.is_ok(), "seed {seed} failed; run it alone with ASHLAR_SEEDS");
    }
}

fn seeds() -> u64 {
    std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in [3, 8, 21] {
        assert_eq!(storm(seed), storm(seed), "seed {seed}");
    }
    assert_ne!(storm(3), storm(8));
}

#[test]
fn a_single_member_leads_and_keeps_its_commands_over_restarts() {
    let mut w = World::new(1, plain);
    let first = w.commit("one");
    w.crash(1, true);
    w.start(1);
    w.commit("two");
    assert_eq!(w.history[&first].1, "one");
    assert_eq!(w.hosts[&1].applied, *w.history.keys().next_back().unwrap());
}

#[test]
fn a_member_that_was_alone_once_does_not_come_back_as_if_it_still_were() {
    for seed in 0..20 {
        // The commit mark is never brought up to date: the restart begins from the snapshot of the creation.
        let mut w = World::new(seed, |settings| settings.mark_ticks = 1_000_000_000);
        for id in [2, 3] {
            let store = w.join(id);
            w.commit_change(&MembersChange::Add { id: MdmId(id), member: member(store, MdmRole::Manager) });
        }
        // Nothing that is written from here on needs a new term, a new vote, or a peer that was not heard before.
        w.run(2_000);
        for id in [2, 3] {
            w.commit_change(&MembersChange::Promote { id: MdmId(id) });
        }
        w.commit("with three");
        w.crash(1, false);
        w.wait_leader();
        w.commit("without one");
        w.crash(2, false);
        w.crash(3, false);
        w.start(1);
        w.run(5_000);
        assert_eq!(w.leader(), None, "one of three leads alone");
        w.start(2);
        w.start(3);
        w.wait_leader();
        w.commit("with all");
        w.settle();
    }
}

#[test]
fn crash_during_creation_leaves_nothing_or_a_whole_log() {
    for seed in 0..40 {
        let mut w = World::new(seed, plain);
        w.crash(1, true);
        w.start(1);
        assert_eq!(w.hosts[&1].open_error, None);
        w.commit("one");
    }
}

#[test]
fn restart_keeps_term_and_vote() {
    let mut w = World::group(2, 3, plain);
    let before = w.statuses();
    for id in 1..=3 {
        w.crash(id, true);
    }
    for (id, before) in (1..=3).zip(before) {
        w.start(id);
        let after = w.hosts[&id].node.as_ref().unwrap().status();
        assert_eq!((after.term, after.vote), (before.term, before.vote));
        assert_eq!(after.start.count, before.start.count + 1);
    }
}

#[test]
fn members_grow_from_one_to_five_and_shrink_to_three() {
    let mut w = World::new(5, plain);
    for id in 2..=5 {
        w.grow(id, MdmRole::Manager);
        w.commit(&format!("with {id}"));
    }
    w.settle();
    for id in [4, 5] {
        if w.leader() == Some(id) {
            w.transfer(id, 1);
            w.run(1000);
        }
        w.commit_change(&MembersChange::Remove { id: MdmId(id) });
        w.run_until(10_000, "the removed member stops", |w| w.hosts[&id].halted.is_some());
    }
    w.commit("with three");
    w.settle();
    let members = w.hosts[&1].node.as_ref().unwrap().members().clone();
    assert_eq!(members.voters(), [1, 2, 3]);
    w.crash(2, false);
    w.commit("two of three are enough");
}

#[test]
fn a_member_removed_while_away_learns_it_and_stops() {
    let mut w = World::group(6, 4, plain);
    if w.leader() == Some(4) {
        w.transfer(4, 1);
        w.run(1000);
    }
    w.crash(4, false);
    w.commit_change(&MembersChange::Remove { id: MdmId(4) });
    w.settle();
    let term = w.statuses()[0].term;
    w.start(4);
    w.run_until(10_000, "it stops", |w| w.hosts[&4].halted.is_some());
    assert!(matches!(w.hosts[&4].halted, Some(HaltReason::Refused { reason: Refusal::Removed, .. })));
    w.run(5000);
    assert_eq!(w.statuses()[0].term, term, "it disturbed the group");
}

#[test]
fn a_removed_id_is_never_used_again() {
    let mut w = World::group(7, 3, plain);
    let leader = w.leader().unwrap();
    let gone = if leader == 3 { 2 } else { 3 };
    w.commit_change(&MembersChange::Remove { id: MdmId(gone) });
    let store = w.hosts[&gone].store;
    let token = w.change(leader, MembersChange::Add { id: MdmId(gone), member: member(store, MdmRole::Manager) });
    assert_eq!(w.answers[&token], Answer::Dropped(DropReason::Change(ChangeError::UsedBefore)));
}

#[test]
fn a_learner_that_is_behind_is_not_promoted() {
    let mut w = World::new(8, plain);
    w.commit("one");
    let store = w.join(2);
    w.isolate(2);
    w.commit_change(&MembersChange::Add { id: MdmId(2), member: member(store, MdmRole::Manager) });
    let token = w.change(1, MembersChange::Promote { id: MdmId(2) });
    assert_eq!(w.answers[&token], Answer::Dropped(DropReason::Change(ChangeError::NotCaughtUp)));
}

#[test]
fn a_member_that_was_away_catches_up_by_snapshot() {
    let mut w = World::group(9, 3, small_logs);
    let leader = w.leader().unwrap();
    let away = if leader == 2 { 3 } else { 2 };
    w.crash(away, true);
    for number in 0..150 {
        w.commit(&format!("{number}"));
    }
    let restores = w.restores;
    w.start(away);
    w.settle();
    assert!(w.restores >= restores + 2, "one from its own disk, one from the leader");
    assert_eq!(w.hosts[&away].digest, w.hosts[&leader].digest);
    w.crash(away, true);
    w.start(away);
    w.settle();
    assert_eq!(w.hosts[&away].digest, w.hosts[&leader].digest);
}

#[test]
fn logs_are_compacted_and_segments_removed() {
    let mut w = World::new(10, small_logs);
    for number in 0..300 {
        w.commit(&format!("{number}"));
    }
    assert!(w.snapshots >= 10);
    assert!(w.hosts[&1].disk.contents().len() < 12, "{:?}", w.hosts[&1].disk.contents().keys());
}

#[test]
fn a_wiped_voter_never_votes() {
    let mut w = World::group(11, 3, plain);
    let leader = w.leader().unwrap();
    let [wiped, behind] = match leader {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    };
    w.isolate(behind);
    w.commit("only the leader and the wiped one have this");
    w.crash(leader, false);
    w.crash(wiped, false);
    w.cut.clear();
    w.join(wiped);
    w.run(60_000);
    assert_eq!(w.leader(), None, "the wiped member helped to elect one that lacks a committed command");
    w.start(leader);
    w.commit("back");
    w.run_until(10_000, "it is told", |w| w.hosts[&wiped].halted.is_some());
    // The way out that the message names.
    w.commit_change(&MembersChange::Remove { id: MdmId(wiped) });
    w.grow(9, MdmRole::Manager);
    w.settle();
}

#[test]
fn a_rolled_back_voter_never_votes() {
    let mut w = World::group(12, 3, plain);
    let leader = w.leader().unwrap();
    let [rolled, behind] = match leader {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    };
    w.crash(rolled, false);
    let old = w.hosts[&rolled].disk.clone();
    w.start(rolled);
    w.run(3000);
    w.restart(rolled);
    w.run(3000);
    w.isolate(behind);
    w.commit("the one behind lacks this");
    w.crash(leader, false);
    w.crash(rolled, false);
    w.hosts.get_mut(&rolled).unwrap().disk = old;
    w.run(100); // What the leader had sent is gone: it would tell the member at once.
    w.cut.clear();
    w.start(rolled);
    w.run(60_000);
    assert_eq!(w.leader(), None);
    let halted = w.hosts[&rolled].halted;
    let rolled_back = matches!(halted, Some(HaltReason::Refused { reason: Refusal::RolledBack, .. }));
    assert!(rolled_back, "{halted:?} {:#?}", w.statuses());
    w.start(leader);
    w.commit("back");
}

#[test]
fn a_roll_back_within_one_start_is_recognised_by_position() {
    let mut w = World::group(13, 3, plain);
    let leader = w.leader().unwrap();
    let [rolled, behind] = match leader {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    };
    let old = w.hosts[&rolled].disk.clone();
    for number in 0..30 {
        w.commit(&format!("{number}"));
    }
    w.run(3000);
    w.isolate(behind);
    w.commit("the one behind lacks this");
    w.crash(leader, false);
    w.crash(rolled, false);
    w.hosts.get_mut(&rolled).unwrap().disk = old;
    w.run(100); // What the leader had sent is gone: it would tell the member at once.
    w.cut.clear();
    w.start(rolled);
    w.run(60_000);
    assert_eq!(w.leader(), None);
    let halted = w.hosts[&rolled].halted;
    let rolled_back = matches!(halted, Some(HaltReason::Refused { reason: Refusal::RolledBack, .. }));
    assert!(rolled_back, "{halted:?} {:#?}", w.statuses());
}

#[test]
fn a_tie_breaker_hands_over_and_takes_no_commands() {
    let mut w = World::group(14, 2, plain);
    w.grow(3, MdmRole::TieBreaker);
    w.settle();
    let leader = w.leader().unwrap();
    let other = 3 - leader;
    // The other manager misses a command that the tie-breaker has; then the leader is gone.
    w.cut_link(leader, other);
    w.commit("with the tie-breaker");
    w.crash(leader, false);
    let token = w.propose(3, "no");
    assert!(matches!(w.answers[&token], Answer::Dropped(DropReason::NotLeader | DropReason::TieBreaker)));
    w.run_until(20_000, "the manager leads", |w| w.leader() == Some(other));
    w.commit("handed over");
    assert!(w.leaders.values().any(|id| *id == 3), "the tie-breaker had to lead for a moment");
}

#[test]
fn leadership_is_transferred_on_request() {
    let mut w = World::group(15, 3, plain);
    let leader = w.leader().unwrap();
    let to = leader % 3 + 1;
    let token = w.transfer(leader, to);
    assert_eq!(w.answers[&token], Answer::TransferStarted);
    w.run_until(2000, "the other leads", |w| w.leader() == Some(to));
    let token = w.transfer(to, to);
    assert_eq!(w.answers[&token], Answer::Dropped(DropReason::NotAManager));
}

#[test]
fn reads_see_what_was_committed_before_and_a_cut_off_leader_answers_none() {
    let mut w = World::group(16, 3, plain);
    let leader = w.leader().unwrap();
    let index = w.commit("one");
    let token = w.read(leader);
    w.run(200);
    assert!(
        matches!(w.answers[&token], Answer::ReadReady { index: at, digest } if at >= index && digest == w.hosts[&leader].digest)
    );
    w.isolate(leader);
    let stale = w.read(leader);
    w.run_until(10_000, "another leads", |w| w.leader().is_some_and(|id| id != leader));
    w.commit("two");
    w.run(3000);
    assert_eq!(w.answers[&stale], Answer::Dropped(DropReason::NotLeader));
}

#[test]
fn a_member_whose_flush_hangs_stops_leading() {
    let mut w = World::group(17, 3, plain);
    let leader = w.leader().unwrap();
    w.write_ms = 1;
    w.hang(leader);
    w.propose(leader, "its own flush never ends");
    w.run_until(20_000, "another leads", |w| w.leader_except(leader).is_some());
}

#[test]
fn a_silent_restart_of_all_elects_again() {
    let mut w = World::group(18, 5, plain);
    w.commit("before");
    (1..=5).for_each(|id| w.crash(id, true));
    (1..=5).for_each(|id| w.start(id));
    w.commit("after");
    w.settle();
}
