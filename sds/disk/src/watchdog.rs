//! Watches the age of the oldest operation of one device, from a thread outside its engine.
//!
//! A disk that stops answering must not stop its placement groups: beyond the limit everything in flight is answered
//! `Hung` and the device is failed for good (F19). What the kernel still holds may land later; its answers are dropped.
//!
//! The watchdog also nudges the engine while something is slow: tokio-uring submits when its thread parks and ignores a
//! submission that the kernel could not take at that moment, so another park must follow.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use sds_store::io::DiskError;

use crate::engine::Intake;
use crate::inflight::{InFlight, Verdict};

/// Looks this many times within the limit, so a hang is found at most an eighth late.
const TICKS_PER_LIMIT: u32 = 8;

pub(crate) fn start(name: &str, inflight: Arc<InFlight>, intake: Arc<dyn Intake>) -> io::Result<JoinHandle<()>> {
    let device = name.to_owned();
    std::thread::Builder::new().name("disk-watchdog".into()).spawn(move || {
        let tick = inflight.hang_limit() / TICKS_PER_LIMIT;
        loop {
            match inflight.watch(tick) {
                Verdict::Fine => {}
                Verdict::Slow => intake.nudge(),
                Verdict::Hung(id, age) => {
                    tracing::error!(device, operation = id.0, ?age, "device hung: it is failed for good");
                    inflight.fail(DiskError::Hung);
                    return;
                }
                Verdict::Over => return,
            }
        }
    })
}
