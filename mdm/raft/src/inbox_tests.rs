//! What a lying or confused member may send.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::identity::{Envelope, Payload, Start, StoreId};
use crate::message;
use crate::message::tests::any_message;
use crate::{
    Action, Event, FileOp, MdmId, MdmRole, Member, MembersChange, NewGroup, RaftNode, Settings, Standing, SystemId,
};

type Files = std::collections::BTreeMap<String, Bytes>;

/// Performs what a member wants to be durable.
fn write(files: &mut Files, actions: &[Action]) {
    for action in actions {
        let Action::Persist { ops, .. } = action else { continue };
        for op in ops {
            match op {
                FileOp::Append { file, bytes } => {
                    let whole = [&files[file][..], &bytes[..]].concat();
                    files.insert(file.clone(), whole.into());
                }
                FileOp::Replace { file, bytes } => drop(files.insert(file.clone(), bytes.clone())),
                FileOp::Remove { file } => drop(files.remove(file)),
                FileOp::Sync { .. } => {}
            }
        }
    }
}

fn record(store: u64) -> Member {
    Member { store: StoreId(store), role: MdmRole::Manager, standing: Standing::Learner, addresses: Vec::new() }
}

/// Feeds an event, and at once everything that it asks to be made durable.
fn feed(node: &mut RaftNode, now: u64, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    node.step(now, event, &mut out);
    flush(node, now, out)
}

fn flush(node: &mut RaftNode, now: u64, mut out: Vec<Action>) -> Vec<Action> {
    let mut at = 0;
    while at < out.len() {
        if let Action::Persist { id, .. } = &out[at] {
            let event = Event::Persisted { id: *id };
            node.step(now, event, &mut out);
        }
        at += 1;
    }
    out
}

/// Member 1, with a few entries, that knows member 2; it leads.
fn leader() -> RaftNode {
    leader_with_files().0
}

fn leader_with_files() -> (RaftNode, Files) {
    let mut files = Files::new();
    let mut out = Vec::new();
    let first = NewGroup::First { member: record(1), state: Bytes::new() };
    let settings = Settings::new(MdmId(1), SystemId(7), 3, 4);
    let mut node = RaftNode::create(settings, StoreId(1), first, &mut out).unwrap();
    write(&mut files, &flush(&mut node, 0, out));
    write(&mut files, &feed(&mut node, 1_000_000_000, Event::Tick));
    for token in 0..3 {
        let command = Bytes::from_static(b"command");
        write(&mut files, &feed(&mut node, 1_000_000_000, Event::Propose { token, command }));
    }
    let change = MembersChange::Add { id: MdmId(2), member: record(2) };
    let out = feed(&mut node, 1_000_000_000, Event::ProposeMembers { token: 9, change });
    write(&mut files, &out);
    assert!(out.iter().any(|a| matches!(a, Action::ApplyMembers { refused: None, .. })));
    // Long enough for a mark: the stable file now knows how much is committed.
    for tick in 1..=8 {
        write(&mut files, &feed(&mut node, 1_000_000_000 + tick * 250_000_000, Event::Tick));
    }
    (node, files)
}

fn joiner() -> RaftNode {
    let mut out = Vec::new();
    let settings = Settings::new(MdmId(1), SystemId(7), 3, 4);
    let mut node = RaftNode::create(settings, StoreId(1), NewGroup::Joining, &mut out).unwrap();
    flush(&mut node, 0, out);
    node
}

fn envelope(payload: Payload) -> Envelope {
    Envelope {
        system: SystemId(7),
        from: MdmId(2),
        to: MdmId(1),
        store: StoreId(2),
        start: Start { count: 1, nonce: 1 },
        start_position: 0,
        position: 0,
        payload,
    }
}

fn from_peer(node: &mut RaftNode, now: u64, envelope: &Envelope) -> Vec<Action> {
    feed(node, now, Event::Message { from: MdmId(2), bytes: envelope.encode() })
}

fn refusal(out: &[Action]) -> Option<crate::Refusal> {
    out.iter().find_map(|action| match action {
        Action::PeerRefused { reason, .. } => Some(*reason),
        _ => None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A peer of the group that says anything at all, at any moment, brings nobody down.
    #[test]
    fn a_lying_member_makes_nobody_panic(messages in vec((any_message(), any::<bool>()), 1..40), joining in any::<bool>()) {
        let mut node = if joining { joiner() } else { leader() };
        let mut now = 4_000_000_000;
        for (message, tick) in messages {
            let sent = envelope(Payload::Raft(message::encode(&message).unwrap()));
            from_peer(&mut node, now, &sent);
            if tick {
                now += 300_000_000;
                feed(&mut node, now, Event::Tick);
            }
        }
    }
}

#[test]
fn a_start_that_goes_back_is_refused_and_told() {
    let mut node = leader();
    let mut sent = envelope(Payload::Here);
    sent.start = Start { count: 5, nonce: 50 };
    sent.position = 10;
    assert_eq!(refusal(&from_peer(&mut node, 0, &sent)), None);
    for (count, nonce, start_position) in [(4, 40, 0), (5, 51, 0), (6, 60, 9)] {
        let mut back = sent.clone();
        (back.start, back.start_position) = (Start { count, nonce }, start_position);
        let out = from_peer(&mut node, 0, &back);
        assert_eq!(refusal(&out), Some(crate::Refusal::RolledBack), "{count} {nonce} {start_position}");
        assert!(out.iter().any(|a| matches!(a, Action::Send { to: MdmId(2), .. })));
    }
    sent.start = Start { count: 6, nonce: 60 };
    sent.start_position = 10;
    assert_eq!(refusal(&from_peer(&mut node, 0, &sent)), None);
}

#[test]
fn a_new_start_of_a_peer_is_durable_before_it_matters() {
    let mut node = leader();
    let mut out = Vec::new();
    let bytes = envelope(Payload::Here).encode();
    node.step(0, Event::Message { from: MdmId(2), bytes }, &mut out);
    assert!(matches!(out.as_slice(), [Action::Persist { .. }]), "{out:?}");
    out.clear();
    node.step(0, Event::Propose { token: 1, command: Bytes::from_static(b"x") }, &mut out);
    assert!(!out.iter().any(|a| matches!(a, Action::Send { .. })), "{out:?}");
}

#[test]
fn other_stores_systems_and_receivers_are_not_heard() {
    let mut node = leader();
    let mut other = envelope(Payload::Here);
    other.store = StoreId(3);
    assert_eq!(refusal(&from_peer(&mut node, 0, &other)), Some(crate::Refusal::OtherStore));
    let mut other = envelope(Payload::Here);
    other.system = SystemId(8);
    assert_eq!(refusal(&from_peer(&mut node, 0, &other)), Some(crate::Refusal::OtherSystem));
    let mut other = envelope(Payload::Here);
    other.to = MdmId(4);
    assert_eq!(from_peer(&mut node, 0, &other), []);
    // The certificate says one thing, the bytes another.
    let bytes = envelope(Payload::Here).encode();
    assert_eq!(feed(&mut node, 0, Event::Message { from: MdmId(5), bytes }), []);
}

#[test]
fn a_refusal_of_an_earlier_start_stops_nobody() {
    let mut node = leader();
    let reason = crate::Refusal::RolledBack;
    let late = envelope(Payload::Refused { reason, start: Start { count: 1, nonce: 999 } });
    from_peer(&mut node, 0, &late);
    assert_eq!(node.status().halted, None);
    let mine = envelope(Payload::Refused { reason, start: node.status().start });
    let out = from_peer(&mut node, 0, &mine);
    assert!(out.iter().any(|a| matches!(a, Action::Halted { .. })));
    let out = feed(&mut node, 0, Event::Propose { token: 1, command: Bytes::new() });
    assert!(matches!(out.as_slice(), [Action::Dropped { token: 1, .. }]));
}

/// The library lets a leader's messages go at once. A sole voter becomes leader without a message from anybody, so its term
/// is not durable yet: after a crash it would use the term again, for other entries.
#[test]
fn a_sole_voter_says_nothing_in_a_term_that_is_not_durable() {
    let (node, files) = leader_with_files();
    let recovered = crate::recover(&files).unwrap().unwrap();
    let before = node.status().term;
    let mut out = Vec::new();
    let mut node = RaftNode::open(Settings::new(MdmId(1), SystemId(7), 3, 5), recovered, &mut out).unwrap();
    flush(&mut node, 0, out);
    let mut out = Vec::new();
    node.step(4_000_000_000, Event::Tick, &mut out);
    assert!(node.status().is_leader && node.status().term > before);
    assert!(out.iter().any(|a| matches!(a, Action::Persist { .. })));
    let early = |a: &Action| matches!(a, Action::Send { .. } | Action::LeaderChanged { .. });
    assert!(!out.iter().any(early), "{out:?}");
    let out = flush(&mut node, 4_000_000_000, out);
    assert!(out.iter().any(|a| matches!(a, Action::Send { to: MdmId(2), .. })));
    assert!(out.iter().any(|a| matches!(a, Action::LeaderChanged { is_self: true, .. })));
}
