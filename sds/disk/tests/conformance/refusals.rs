//! What must not open, and what breaks: typed errors, hangs, power cuts.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sds_api::buf::AlignedBuf;
use sds_disk::geometry::{MediaKind, WriteCache};
use sds_disk::{Device, EngineChoice, EngineKind, OpenError, SubmitError, create_file, inspect, open};
use sds_store::io::{DiskError, DiskOp};

use crate::bench::{Bench, Medium, SIZE, options, pattern};
use crate::loop_device::LoopDevice;

fn try_open(path: &Path) -> Result<Arc<dyn Device>, OpenError> {
    open(path, options(EngineChoice::Automatic), Arc::new(|_| {}))
}

fn refusal(path: &Path) -> OpenError {
    let error = try_open(path).err().expect("a refusal");
    assert!(error.to_string().contains(&path.display().to_string()), "the path is named: {error}");
    error
}

#[test]
fn what_is_no_device_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    assert!(matches!(refusal(&path("missing")), OpenError::NotFound(_)));
    assert!(matches!(refusal(directory.path()), OpenError::NotADevice { found: "directory", .. }));
    assert!(matches!(refusal(Path::new("/dev/null")), OpenError::NotADevice { found: "character device", .. }));
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    assert!(matches!(refusal(&path("pipe")), OpenError::NotADevice { found: "pipe", .. }));
    std::fs::write(path("ragged"), vec![0; (1 << 20) + 512]).unwrap();
    assert!(matches!(refusal(&path("ragged")), OpenError::RaggedSize { size: 1_049_088, .. }));
    std::fs::write(path("small"), vec![0; 4096]).unwrap();
    assert!(matches!(refusal(&path("small")), OpenError::TooSmall { size: 4096, .. }));
}

#[test]
fn a_device_file_is_never_made_over_something_and_leaves_nothing_when_it_fails() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(create_file(&path, SIZE), Err(OpenError::Exists(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let path = directory.path().join("huge");
    assert!(matches!(create_file(&path, 1 << 60), Err(OpenError::NoSpace { .. })));
    assert!(!path.exists());
    assert!(matches!(create_file(&path, SIZE + 1), Err(OpenError::RaggedSize { .. })));
    create_file(&path, SIZE).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_knows_what_it_is() {
    for (medium, kind) in [(Medium::file(), MediaKind::File), (Medium::sparse_file(), MediaKind::SparseFile)] {
        let bench = Bench::new(EngineKind::Blocking, false, &medium);
        let geometry = bench.device.geometry();
        assert_eq!((geometry.kind, geometry.size), (kind, SIZE));
        assert_eq!(geometry.discard_granularity.is_some(), kind == MediaKind::SparseFile);
    }
}

#[test]
fn a_sparse_file_gives_discarded_space_back_and_a_reserved_one_keeps_it() {
    use std::os::unix::fs::MetadataExt;
    for (medium, gives_back) in [(Medium::sparse_file(), true), (Medium::file(), false)] {
        let bench = Bench::new(EngineKind::Uring, false, &medium);
        bench.write(0, vec![AlignedBuf::copy_of(&pattern(1 << 20, 1)).freeze()], true).unwrap();
        let before = std::fs::metadata(&medium.path).unwrap().blocks();
        bench.run(DiskOp::Discard { offset: 0, length: 1 << 20 }).unwrap();
        let after = std::fs::metadata(&medium.path).unwrap().blocks();
        assert_eq!(after < before, gives_back, "{before} then {after} blocks");
    }
}

#[test]
fn inspection_reads_beside_the_owner_and_sees_the_lock() {
    let medium = Medium::file();
    let bench = Bench::new(EngineKind::Uring, false, &medium);
    let block = AlignedBuf::copy_of(&pattern(4096, 8)).freeze();
    bench.write(4096, vec![block.clone()], true).unwrap();
    let inspected = inspect(&medium.path).unwrap();
    assert!(inspected.is_locked().unwrap());
    let mut seen = vec![0; 4096];
    inspected.read_exact_at(&mut seen, 4096).unwrap();
    assert_eq!(seen, block);
    assert!(inspected.read_exact_at(&mut seen, inspected.size()).is_err());
    bench.device.close().unwrap();
    assert!(!inspected.is_locked().unwrap());
}

#[test]
fn block_devices_that_are_read_only_or_mounted_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    create_file(&file, SIZE).unwrap();
    match LoopDevice::attach(&file, 512, true) {
        Ok(device) => assert!(matches!(refusal(&device.path), OpenError::ReadOnly(_))),
        Err(reason) => return println!("skipped: no loop devices here: {reason}"),
    }
    let device = LoopDevice::attach(&file, 4096, false).unwrap();
    {
        let opened = try_open(&device.path).unwrap();
        let geometry = *opened.geometry();
        assert_eq!((geometry.kind, geometry.size, geometry.logical_block), (MediaKind::BlockDevice, SIZE, 4096));
        assert_ne!(geometry.write_cache, WriteCache::Unknown);
        opened.close().unwrap();
    }
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.path).status();
    let mount = directory.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").arg(&device.path).arg(&mount).status();
    if !made.is_ok_and(|status| status.success()) || !mounted.is_ok_and(|status| status.success()) {
        return println!("skipped: mounting is not permitted here");
    }
    let error = try_open(&device.path).err();
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    assert!(matches!(error, Some(OpenError::InUse(_))), "{error:?}");
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "ramfs", "none"]).arg(directory.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return println!("skipped: mounting is not permitted here");
    }
    let path = directory.path().join("device");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let error = try_open(&path).err();
    assert!(Command::new("umount").arg(directory.path()).status().unwrap().success());
    assert!(matches!(error, Some(OpenError::NoDirectIo(_))), "{error:?}");
}

#[test]
fn a_device_truncated_under_its_owner_gives_errors_not_zeroes() {
    for kind in [EngineKind::Uring, EngineKind::Ring, EngineKind::Blocking] {
        let medium = Medium::file();
        let bench = Bench::new(kind, false, &medium);
        std::fs::OpenOptions::new().write(true).open(&medium.path).unwrap().set_len(SIZE / 2).unwrap();
        assert_eq!(bench.read(SIZE / 2 - 4096, 4096).unwrap().len(), 4096);
        assert_eq!(bench.read(SIZE / 2 - 4096, 8192), Err(DiskError::Io), "half of it is gone");
        assert_eq!(bench.read(SIZE / 2, 4096), Err(DiskError::Io));
    }
}

#[test]
fn injected_errors_hit_what_they_are_meant_for() {
    let medium = Medium::file();
    let bench = Bench::new(EngineKind::Fault, false, &medium);
    let faults = bench.faults.clone().unwrap();
    faults.fail(2, DiskError::Io, |op| matches!(op, DiskOp::Write { .. }));
    faults.fail(1, DiskError::NoSpace, |op| matches!(op, DiskOp::Flush));
    let block = AlignedBuf::copy_of(&pattern(4096, 1)).freeze();
    assert!(bench.read(0, 4096).is_ok());
    assert_eq!(bench.write(0, vec![block.clone()], true), Err(DiskError::Io));
    assert_eq!(bench.run(DiskOp::Flush), Err(DiskError::NoSpace));
    assert_eq!(bench.write(0, vec![block.clone()], true), Err(DiskError::Io));
    assert_eq!(bench.write(0, vec![block], true), Ok(()));
    assert_eq!(bench.run(DiskOp::Flush), Ok(Bytes::new()));
    assert_eq!(bench.device.statistics().errors, 3);
}

#[test]
fn a_hung_operation_fails_the_device_for_good_and_its_late_answer_is_dropped() {
    // F19
    let medium = Medium::file();
    let bench = Bench::with_limit(EngineKind::Fault, false, &medium.path, Duration::from_millis(200));
    let faults = bench.faults.clone().unwrap();
    faults.hang(1, |op| matches!(op, DiskOp::Flush));
    let hung = bench.submit(DiskOp::Flush);
    assert!(bench.read(0, 4096).is_ok(), "others are served meanwhile");
    assert!(bench.device.health().oldest.is_some());
    assert_eq!(bench.wait(hung), Err(DiskError::Hung));
    assert_eq!(bench.device.health().failed, Some(DiskError::Hung));
    faults.release();
    let late = bench.request(DiskOp::Flush);
    assert_eq!(bench.device.submit(vec![late]), Err(SubmitError::Failed(DiskError::Hung)));
    assert_eq!(bench.device.close(), Err(DiskError::Hung));
    assert!(bench.unclaimed().is_empty(), "the late answer was dropped");
}

#[test]
fn delayed_operations_come_late_and_whole() {
    let medium = Medium::file();
    let bench = Bench::new(EngineKind::Fault, false, &medium);
    bench.faults.as_ref().unwrap().delay(Duration::from_millis(30));
    let begin = std::time::Instant::now();
    assert_eq!(bench.read(0, 4096).unwrap().len(), 4096);
    assert!(begin.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_power_cut_keeps_what_was_durable_or_flushed_and_tears_the_rest() {
    let old = AlignedBuf::copy_of(&pattern(65536, 1)).freeze();
    let new = AlignedBuf::copy_of(&pattern(65536, 2)).freeze();
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..4 {
        let medium = Medium::file();
        let bench = Bench::new(EngineKind::Fault, true, &medium);
        for offset in [0, 1 << 20, 2 << 20] {
            bench.write(offset, vec![old.clone()], true).unwrap();
        }
        bench.write(0, vec![new.clone()], false).unwrap();
        bench.run(DiskOp::Flush).unwrap();
        bench.write(1 << 20, vec![new.clone()], false).unwrap();
        bench.write(2 << 20, vec![new.clone()], true).unwrap();
        assert!(bench.read(1 << 20, 65536).unwrap() == new.clone(), "readable before the cut");
        bench.faults.as_ref().unwrap().power_cut(seed);
        assert_eq!(bench.device.close(), Err(DiskError::Gone));

        let after = Bench::new(EngineKind::Uring, false, &medium);
        assert!(after.read(0, 65536).unwrap() == new.clone(), "flushed");
        assert!(after.read(2 << 20, 65536).unwrap() == new.clone(), "durable");
        let torn = after.read(1 << 20, 65536).unwrap();
        for at in (0..65536).step_by(512) {
            let sector = &torn[at..at + 512];
            if sector == &new[at..at + 512] {
                kept += 1;
            } else {
                assert_eq!(sector, &old[at..at + 512], "old or new, nothing else");
                lost += 1;
            }
        }
    }
    assert!(kept > 100 && lost > 100, "{kept} kept, {lost} lost: a fair coin");
}
