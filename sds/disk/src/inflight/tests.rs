//! The table of operations in flight: ages, bounds, late completions.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest, IoClass, OpId};

use super::{InFlight, Verdict};
use crate::{SubmitError, limits};

type Answers = Arc<Mutex<Vec<(u64, Result<(), DiskError>)>>>;

fn table(hang_limit: Duration) -> (Arc<InFlight>, Answers) {
    let answers = Answers::default();
    let sink = {
        let answers = answers.clone();
        Arc::new(move |done: Vec<DiskDone>| {
            let done = done.into_iter().map(|done| (done.id.0, done.result.map(|_| ())));
            answers.lock().expect("a healthy test").extend(done);
        })
    };
    (Arc::new(InFlight::new(sink, hang_limit)), answers)
}

fn flush(id: u64) -> DiskRequest {
    DiskRequest { id: OpId(id), class: IoClass::Foreground, op: DiskOp::Flush }
}

fn done(id: u64) -> DiskDone {
    DiskDone { id: OpId(id), result: Ok(Bytes::new()) }
}

#[test]
fn more_than_the_limit_is_refused_whole_and_costs_nothing() {
    let (table, answers) = table(Duration::from_secs(60));
    let most = limits::IN_FLIGHT_MAX as u64;
    table.admit(&(0..most).map(flush).collect::<Vec<_>>()).expect("the limit itself is allowed");
    assert_eq!(table.admit(&[flush(most)]), Err(SubmitError::TooMany(limits::IN_FLIGHT_MAX + 1)));
    table.complete(vec![done(3)]);
    assert_eq!(table.admit(&[flush(most), flush(most + 1)]), Err(SubmitError::TooMany(limits::IN_FLIGHT_MAX + 1)));
    table.admit(&[flush(most)]).expect("one place was freed");
    assert_eq!(*answers.lock().expect("healthy"), [(3, Ok(()))]);
}

#[test]
fn a_duplicate_id_is_refused_and_its_batch_with_it() {
    let (table, _) = table(Duration::from_secs(60));
    table.admit(&[flush(1)]).expect("fresh");
    assert_eq!(table.admit(&[flush(2), flush(1)]), Err(SubmitError::Duplicate(OpId(1))));
    assert_eq!(table.admit(&[flush(5), flush(5)]), Err(SubmitError::Duplicate(OpId(5))));
    assert_eq!(table.health().in_flight, 1);
    table.admit(&[flush(2), flush(5)]).expect("neither was taken before");
}

#[test]
fn a_hung_device_answers_everything_once_and_drops_what_comes_late() {
    let (table, answers) = table(Duration::from_millis(1));
    table.admit(&[flush(1), flush(2)]).expect("fresh");
    table.complete(vec![done(1)]);
    let verdict = loop {
        match table.watch(Duration::from_millis(1)) {
            Verdict::Fine | Verdict::Slow => continue,
            verdict => break verdict,
        }
    };
    assert!(matches!(verdict, Verdict::Hung(OpId(2), _)), "{verdict:?}");
    table.fail(DiskError::Hung);
    table.complete(vec![done(2)]);
    assert_eq!(*answers.lock().expect("healthy"), [(1, Ok(())), (2, Err(DiskError::Hung))]);
    assert_eq!(table.admit(&[flush(3)]), Err(SubmitError::Failed(DiskError::Hung)));
    assert_eq!(table.drain(), Err(DiskError::Hung));
    assert_eq!(table.watch(Duration::from_secs(60)), Verdict::Over);
}

#[test]
fn time_in_which_the_process_was_stopped_is_not_the_disks() {
    let (limit, tick) = (Duration::from_secs(5), Duration::from_millis(625));
    let (table, _) = table(limit);
    table.admit(&[flush(1)]).expect("fresh");
    let resumed = Instant::now() + Duration::from_secs(600);
    assert_eq!(table.lock().judge(resumed, tick), Verdict::Slow);
    let mut now = resumed;
    let verdict = loop {
        now += tick;
        match table.lock().judge(now, tick) {
            Verdict::Slow => continue,
            verdict => break verdict,
        }
    };
    // It does hang: that is found, after no less than the limit.
    assert!(matches!(verdict, Verdict::Hung(OpId(1), age) if age > limit), "{verdict:?}");
    assert!(now - resumed >= limit - tick * 2, "{:?}", now - resumed);
}

#[test]
fn a_discard_is_given_more_time() {
    let (table, _) = table(Duration::from_millis(2));
    let op = DiskOp::Discard { offset: 0, length: 4096 };
    table.admit(&[DiskRequest { id: OpId(1), class: IoClass::Background, op }]).expect("fresh");
    let mut calm = 0;
    while !matches!(table.watch(Duration::from_millis(2)), Verdict::Hung(..)) {
        calm += 1;
    }
    assert!(calm >= 3, "judged after {calm} ticks of 2 ms, not after 24 ms");
}

#[test]
fn drain_waits_for_the_last_answer() {
    let (table, answers) = table(Duration::from_secs(60));
    table.admit(&[flush(1)]).expect("fresh");
    let waiter = std::thread::spawn({
        let table = table.clone();
        move || table.drain()
    });
    while table.admit(&[]) != Err(SubmitError::Closed) {
        std::thread::yield_now();
    }
    assert!(!waiter.is_finished());
    table.complete(vec![done(1)]);
    assert_eq!(waiter.join().expect("no panic"), Ok(()));
    assert_eq!(answers.lock().expect("healthy").len(), 1);
}
