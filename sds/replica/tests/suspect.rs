//! What a suspect replica says to its store: nothing that it does not know, and all that must be said.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use bytes::{BufMut, Bytes};
use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, Nanos, Seq, Term, Version};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdsId, StoragePoolId};
use mdm_api::timing::Timing;
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::{PeerBody, PeerMessage};
use sds_replica::{
    Action, Context, Credits, Event, Identity, Leases, MemberHome, Recovered, Replica, ResyncBudget, RetainedBudget,
    StoreDone, StoreRequest, Verdict,
};

const PG: PgId = PgId { pool: StoragePoolId(1), index: 0 };
const OWN: DeviceId = DeviceId(10);
const PRIMARY: DeviceId = DeviceId(11);
const PROCESS: ProcessIncarnation = ProcessIncarnation(5);
const TERM: Term = Term(7);

/// A replica that learns: its store committed 48 entries and could read back the first 13.
struct Learner {
    replica: Replica,
    context: Context,
    now: Nanos,
}

impl Learner {
    fn new() -> Self {
        let mut context = Context {
            leases: Leases::new(SdsId(1), PROCESS, Timing::DEFAULT, Nanos(0)),
            credits: Credits::default(),
            resync: ResyncBudget { slots: 2, is_open: true, ..ResyncBudget::default() },
            retained: RetainedBudget { limit: 1 << 20, used: 0 },
        };
        let entry = |seq| Entry {
            pg: PG,
            version: Version { term: Term(3), seq: Seq(seq) },
            identity: None,
            body: EntryBody::EpochStart { epoch: Epoch(3) },
        };
        let recovered = Recovered {
            promised: Term(3),
            state: None,
            committed: Seq(48),
            entries: (1..=13).map(entry).collect(),
            verdict: Verdict::Suspect,
        };
        let identity = Identity { pg: PG, device: OWN, server: SdsId(1), incarnation: PROCESS };
        let replica = Replica::new(identity, Some(recovered), &mut context);
        Self { replica, context, now: Nanos(1_000_000_000) }
    }

    /// What the store is asked, in order. Everything that it is asked is done at once.
    fn step(&mut self, event: Event) -> Vec<StoreRequest> {
        let (mut asked, mut events) = (Vec::new(), vec![event]);
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            self.replica.step(self.now, event, &mut self.context, &mut actions);
            for action in actions {
                if let Action::Store { token, request } = action {
                    asked.push(request);
                    events.insert(0, Event::Store { token, result: Ok(StoreDone::Durable) });
                }
            }
        }
        asked
    }

    fn primary_says(&mut self, body: PeerBody) -> Vec<StoreRequest> {
        let incarnation = ProcessIncarnation(6);
        self.step(Event::Peer(PeerMessage {
            pg: PG,
            term: TERM,
            from: PRIMARY,
            to: OWN,
            incarnation,
            to_incarnation: PROCESS,
            body,
        }))
    }

    fn follow(&mut self) {
        let config = PgConfig {
            pg: PG,
            epoch: Epoch(8),
            term: TERM,
            primary: Some(PRIMARY),
            primary_incarnation: ProcessIncarnation(6),
            previous_certified_dead: false,
            heir: None,
            isr: vec![PRIMARY],
            learners: vec![OWN],
        };
        let home =
            |device, server, incarnation| MemberHome { device, server: SdsId(server), incarnation, is_down: false };
        let homes = vec![home(OWN, 1, PROCESS), home(PRIMARY, 2, ProcessIncarnation(6))];
        self.step(Event::Config { config, min_isr: 1, homes });
        self.step(Event::PeerConnected { device: PRIMARY, incarnation: ProcessIncarnation(6) });
        self.primary_says(PeerBody::Activate { ask: 1, epoch: Epoch(8) });
    }
}

/// The state of a primary as of an entry, without sessions.
fn state(through: Version) -> Bytes {
    let mut out = vec![1, 0];
    out.put_u64_le(through.term.0);
    out.put_u64_le(through.seq.0);
    out.put_u32_le(1);
    out.put_u64_le(through.term.0);
    out.put_u64_le(1);
    out.put_u32_le(0);
    out.into()
}

// Found by simulation: the state as of entry 13 let nothing of the journal go, was asked for again and again, and filled it.
#[test]
fn a_suspect_replica_saves_no_state_of_its_own() {
    let mut learner = Learner::new();
    assert_eq!(learner.step(Event::WantState), []);
    learner.follow();
    assert_eq!(learner.step(Event::WantState), []);
}

#[test]
fn what_a_suspect_store_may_hold_beyond_what_could_be_read_is_void_before_the_stream_begins() {
    let mut learner = Learner::new();
    learner.follow();
    let through = Version { term: TERM, seq: Seq(49) };
    let asked = learner.primary_says(PeerBody::Reset { stream: 1, through, state: state(through) });
    let is_void = |request: &StoreRequest| matches!(request, StoreRequest::Void { after: Seq(48), .. });
    let is_state = |request: &StoreRequest| matches!(request, StoreRequest::SaveState { through: Seq(49), .. });
    assert!(asked.iter().any(is_void), "{asked:?}");
    assert!(asked.iter().position(is_void) < asked.iter().position(is_state), "{asked:?}");
    assert!(asked.iter().any(is_state), "{asked:?}");
}

#[test]
fn a_stream_from_before_what_a_suspect_store_knows_as_committed_starts_from_nothing() {
    let mut learner = Learner::new();
    learner.follow();
    let through = Version { term: TERM, seq: Seq(20) };
    let asked = learner.primary_says(PeerBody::Reset { stream: 1, through, state: state(through) });
    assert!(matches!(asked.first(), Some(StoreRequest::ForgetPg { .. })), "{asked:?}");
}
