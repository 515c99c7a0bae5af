//! Promises about files that are not as they were written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_raft::{Damage, RecoverError, Settings, recover};
use world::World;

type Files = BTreeMap<String, Bytes>;

fn small_segments(settings: &mut Settings) {
    settings.segment_bytes = 1_000;
    settings.snapshot_entries = 1_000;
}

fn files(settings: fn(&mut Settings)) -> Files {
    let mut w = World::new(1, settings);
    for number in 0..60 {
        w.commit(&format!("command {number}"));
    }
    w.run(3000);
    w.hosts[&1].disk.contents()
}

fn segments(files: &Files) -> Vec<String> {
    files.keys().filter(|name| name.starts_with("log-")).cloned().collect()
}

fn edit(files: &mut Files, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = files[name].to_vec();
    change(&mut bytes);
    files.insert(name.to_owned(), bytes.into());
}

fn cause(files: &Files) -> Option<Damage> {
    match recover(files) {
        Ok(_) => None,
        Err(RecoverError::Damaged { cause, .. }) => Some(cause),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_intact_log_opens() {
    assert_eq!(cause(&files(small_segments)), None);
    assert!(recover(&Files::new()).unwrap().is_none());
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let whole = files(small_segments);
    for (name, bytes) in &whole {
        for at in (0..bytes.len()).step_by(7) {
            let mut files = whole.clone();
            edit(&mut files, name, |bytes| bytes[at] ^= 1 << (at % 8));
            assert!(recover(&files).is_err(), "{name} at {at}");
        }
    }
}

#[test]
fn a_record_lost_in_the_middle_is_damage_and_not_the_end() {
    let whole = files(|settings| settings.mark_ticks = 1_000_000);
    let [segment] = segments(&whole).try_into().unwrap();
    // Without marks: only the records that follow tell.
    for at in [200, 800, 1500] {
        let mut files = whole.clone();
        edit(&mut files, &segment, |bytes| bytes[at..at + 60].fill(0));
        assert!(matches!(cause(&files), Some(Damage::Middle { .. })), "{at}: {:?}", cause(&files));
    }
}

#[test]
fn a_log_shorter_than_its_mark_is_damage() {
    let whole = files(small_segments);
    let last = segments(&whole).pop().unwrap();
    let length = whole[&last].len();
    for cut in 1..length - 40 {
        let mut files = whole.clone();
        edit(&mut files, &last, |bytes| bytes.truncate(length - cut));
        assert!(matches!(cause(&files), Some(Damage::Short { .. })), "{cut}");
    }
    let mut files = whole.clone();
    files.remove(&last);
    assert!(matches!(cause(&files), Some(Damage::Short { .. })));
}

#[test]
fn a_torn_end_after_the_mark_is_the_end() {
    let mut w = World::new(2, |settings| settings.mark_ticks = 1_000_000);
    w.commit("one");
    let before = w.hosts[&1].disk.contents();
    w.commit("two");
    let after = w.hosts[&1].disk.contents();
    let [segment] = segments(&after).try_into().unwrap();
    let (short, long) = (before[&segment].len(), after[&segment].len());
    for end in short..=long {
        let mut files = after.clone();
        edit(&mut files, &segment, |bytes| bytes.truncate(end));
        assert_eq!(cause(&files), None, "{end}");
        let mut files = after.clone();
        edit(&mut files, &segment, |bytes| bytes[end..].fill(0));
        assert_eq!(cause(&files), None, "{end}");
    }
}

#[test]
fn missing_and_foreign_files_are_damage() {
    let whole = files(small_segments);
    for name in ["stable", "snapshot"] {
        let mut files = whole.clone();
        files.remove(name);
        assert_eq!(cause(&files), Some(Damage::Missing), "{name}");
    }
    let mut w = World::new(99, small_segments);
    w.commit("another log");
    let other = w.hosts[&1].disk.contents();
    for name in ["snapshot", "log-0000000000000001"] {
        let mut files = whole.clone();
        files.insert(name.to_owned(), other[name].clone());
        assert!(matches!(cause(&files), Some(Damage::OtherStore { .. })), "{name}");
    }
    let mut files = whole.clone();
    let middle = segments(&files)[1].clone();
    files.remove(&middle);
    assert_eq!(cause(&files), Some(Damage::Missing));
}

#[test]
fn the_message_names_the_way_out() {
    let mut files = files(small_segments);
    edit(&mut files, "stable", |bytes| bytes[9] ^= 1);
    let text = recover(&files).unwrap_err().to_string();
    assert!(text.contains("add it again under a new id"), "{text}");
}

#[test]
fn a_newer_format_is_named_and_not_called_damage() {
    let mut files = files(small_segments);
    edit(&mut files, "stable", |bytes| {
        bytes[4] = 2;
        let end = bytes.len() - 4;
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
    });
    assert!(matches!(recover(&files), Err(RecoverError::Newer { version: 2, .. })));
}
