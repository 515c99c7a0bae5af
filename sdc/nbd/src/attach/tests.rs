//! Records, links and names of attached devices.

use std::path::{Path, PathBuf};

use super::state::{Mechanism, Record, Records};
use super::{AttachError, VolumeSpec, check_name};

fn record(name: &str) -> Record {
    let volume = VolumeSpec {
        name: name.to_owned(),
        id: 7,
        generation: 3,
        export: "vol-0000000000000007".to_owned(),
        size_bytes: 1 << 30,
        read_only: true,
    };
    Record {
        volume,
        mechanism: Mechanism::FuseLoop,
        device: PathBuf::from("/dev/loop7"),
        index: 7,
        pid: 12,
        started: 34,
        file: PathBuf::from("/run/a b/files/x"),
    }
}

#[test]
fn records_survive_a_round_trip_and_damage_is_reported() {
    let directory = tempfile::tempdir().expect("directory");
    let records = Records::open(&directory.path().join("deep/run")).expect("open");
    let mut first = record("one");
    records.put(&first).expect("put");
    first.volume.size_bytes *= 2;
    records.put(&first).expect("replace");
    let mut second = record("two");
    (second.mechanism, second.file) = (Mechanism::Nbd, PathBuf::new());
    records.put(&second).expect("put");
    assert_eq!(records.get("one").expect("get"), Some(first.clone()));
    let all: Vec<_> = records.all().expect("all").into_iter().map(|record| record.expect("whole")).collect();
    assert_eq!(all, [first, second]);
    records.remove("one").expect("remove");
    records.remove("one").expect("twice is once");
    assert_eq!(records.get("one").expect("get"), None);
    std::fs::write(directory.path().join("deep/run/three.device"), "ashlar-device 9\n").expect("write");
    assert!(matches!(records.get("three"), Err(AttachError::Record { .. })));
    assert_eq!(records.all().expect("all").len(), 2);
}

#[test]
fn names_that_would_leave_the_directory_are_refused() {
    for good in ["v", "db-1.prod", "a:b@c+d_e"] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    let long = "x".repeat(128);
    for bad in ["", ".", "..", "a/b", "a b", "ä", "a\n", long.as_str()] {
        assert!(matches!(check_name(bad), Err(AttachError::InvalidName(_))), "{bad:?}");
    }
}

#[test]
fn a_process_is_known_by_its_start_not_by_its_number_alone() {
    let own = super::fuse_loop::process_start(std::process::id());
    assert!(own.is_some_and(|ticks| ticks > 0));
    assert_eq!(super::fuse_loop::process_start(u32::MAX), None);
    assert!(Path::new("/proc/self/stat").exists());
}
