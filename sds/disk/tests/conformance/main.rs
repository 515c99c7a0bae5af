//! One suite for every engine: what a store may rely on, on files and, as root, on loop devices of both sector sizes.

#![allow(clippy::unwrap_used)]

mod bench;
mod loop_device;
mod promises;
mod refusals;
mod stores;

use bench::{Bench, Medium};
use sds_disk::EngineKind;

/// Runs every promise against one engine on one medium.
fn run_all(kind: EngineKind, volatile_cache: bool, medium: Medium) {
    for (name, promise) in promises::ALL {
        println!("{kind} on {medium:?}: {name}");
        promise(&Bench::new(kind, volatile_cache, &medium));
    }
}

#[test]
fn uring_keeps_every_promise_on_a_file() {
    run_all(EngineKind::Uring, false, Medium::file());
}

#[test]
fn uring_keeps_every_promise_on_a_sparse_file() {
    run_all(EngineKind::Uring, false, Medium::sparse_file());
}

#[test]
fn ring_keeps_every_promise_on_a_file() {
    run_all(EngineKind::Ring, false, Medium::file());
}

#[test]
fn ring_keeps_every_promise_on_a_sparse_file() {
    run_all(EngineKind::Ring, false, Medium::sparse_file());
}

#[test]
fn blocking_keeps_every_promise_on_a_file() {
    run_all(EngineKind::Blocking, false, Medium::file());
}

#[test]
fn blocking_keeps_every_promise_on_a_sparse_file() {
    run_all(EngineKind::Blocking, false, Medium::sparse_file());
}

#[test]
fn the_fault_wrapper_keeps_every_promise_while_nothing_is_injected() {
    run_all(EngineKind::Fault, false, Medium::file());
    run_all(EngineKind::Fault, true, Medium::file());
}

#[test]
fn every_engine_keeps_every_promise_on_block_devices_of_both_sector_sizes() {
    for sector in [512, 4096] {
        for kind in [EngineKind::Uring, EngineKind::Ring, EngineKind::Blocking, EngineKind::Fault] {
            match Medium::loop_device(sector) {
                Ok(medium) => run_all(kind, false, medium),
                Err(reason) => println!("skipped: no loop device with sectors of {sector} bytes: {reason}"),
            }
        }
    }
}
