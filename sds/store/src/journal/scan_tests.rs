//! The decision table, row by row, on rings made by hand.

use super::*;
use crate::journal::frame::FRAME_VERSION;

const SALT: u64 = 77;
const RING: u64 = 64 * PAGE;

struct Ring {
    bytes: Vec<u8>,
    next: u64,
    chain: u32,
}

impl Ring {
    fn new() -> Self {
        Self { bytes: vec![0; RING as usize], next: 0, chain: 0 }
    }

    /// Writes a frame of one page; returns its position.
    fn frame(&mut self, incarnation: u64, durable_through: u64) -> u64 {
        let lsn = self.next;
        let mut head = FrameHead {
            version: FRAME_VERSION,
            salt: SALT,
            incarnation,
            lsn,
            durable_through,
            previous_crc: self.chain,
            record_count: 0,
            header_bytes: 0,
            record_bytes: 0,
            payload_bytes: 0,
            crc: 0,
        };
        let area = head.encode(&[]);
        let at = (lsn % RING) as usize;
        self.bytes[at..at + area.len()].copy_from_slice(&area);
        self.chain = head.crc;
        self.next += head.total_bytes();
        lsn
    }

    fn frames(&mut self, count: usize, incarnation: u64, durable_through: u64) {
        for _ in 0..count {
            self.frame(incarnation, durable_through);
        }
    }

    fn damage(&mut self, lsn: u64) {
        self.bytes[(lsn % RING) as usize + 600] ^= 1;
    }

    /// As if the device had never written it.
    fn erase(&mut self, lsn: u64) {
        let at = (lsn % RING) as usize;
        self.bytes[at..at + PAGE_BYTES].fill(0);
    }

    fn scan(&self) -> (usize, u64, EndVerdict) {
        self.scan_resumed(0, 0)
    }

    /// The last opening went on there, under that count.
    fn scan_resumed(&self, lsn: u64, incarnation: u64) -> (usize, u64, EndVerdict) {
        let mut scanner = Scanner::new(RING, SALT, 0, 0, 0);
        scanner.goes_on(lsn, incarnation);
        let mut frames = 0;
        for piece in self.bytes.chunks(3 * PAGE_BYTES) {
            scanner.feed(Bytes::copy_from_slice(piece));
            while let Scanned::Frame(_) = scanner.advance() {
                frames += 1;
            }
        }
        assert!(scanner.is_fed());
        let end = scanner.end();
        (frames, end.lsn, end.verdict)
    }
}

#[test]
fn whole_chained_frames_are_accepted_and_nothing_behind_them_is_a_clean_end() {
    let mut ring = Ring::new();
    assert_eq!(ring.scan(), (0, 0, EndVerdict::Clean));
    (0..3).for_each(|index| assert_eq!(ring.frame(1, index * PAGE), index * PAGE));
    assert_eq!(ring.scan(), (3, 3 * PAGE, EndVerdict::Clean));
}

#[test]
fn a_damaged_last_frame_ends_the_journal_uncertainly() {
    let mut ring = Ring::new();
    ring.frame(1, 0);
    let last = ring.frame(1, PAGE);
    ring.damage(last);
    assert_eq!(ring.scan(), (1, last, EndVerdict::Uncertain));
}

#[test]
fn a_torn_group_is_no_corruption() {
    let mut ring = Ring::new();
    ring.frame(1, 0);
    let torn = ring.frame(1, PAGE);
    ring.frames(3, 1, PAGE);
    ring.damage(torn);
    assert_eq!(ring.scan(), (1, torn, EndVerdict::Uncertain));
    ring.erase(torn);
    assert_eq!(ring.scan(), (1, torn, EndVerdict::Uncertain));
}

#[test]
fn a_bad_frame_with_more_behind_it_than_were_ever_in_flight_is_corruption() {
    let mut ring = Ring::new();
    let bad = ring.frame(1, 0);
    ring.frames(FRAMES_IN_FLIGHT, 1, 0);
    ring.damage(bad);
    assert_eq!(ring.scan(), (0, 0, EndVerdict::Corrupt));
}

#[test]
fn a_frame_that_knew_the_bad_one_durable_proves_corruption_at_any_distance() {
    let mut ring = Ring::new();
    let bad = ring.frame(1, 0);
    let after = ring.frame(1, PAGE);
    ring.damage(bad);
    assert_eq!(ring.scan(), (0, 0, EndVerdict::Corrupt));
    ring.erase(bad);
    assert_eq!(ring.scan(), (0, 0, EndVerdict::Corrupt));
    ring.damage(after);
    assert_eq!(ring.scan(), (0, 0, EndVerdict::Clean), "both gone: nothing tells that there was anything");
}

#[test]
fn what_an_earlier_recovery_cut_off_is_not_picked_up_again() {
    let mut ring = Ring::new();
    ring.frame(1, 0);
    let mark = (ring.next, ring.chain);
    // Torn, and behind it frames that were whole: cut off at `mark`.
    ring.frame(1, PAGE);
    ring.frames(3, 1, PAGE);
    (ring.next, ring.chain) = mark;
    ring.frame(2, PAGE);
    assert_eq!(ring.scan(), (2, 2 * PAGE, EndVerdict::Clean), "whole, but does not chain");
    // The new life's second frame is torn as well: the old ones are still no evidence.
    let torn = ring.frame(2, PAGE);
    ring.damage(torn);
    assert_eq!(ring.scan(), (2, torn, EndVerdict::Uncertain));
}

#[test]
fn what_an_earlier_recovery_cut_off_stays_so_when_a_torn_write_makes_it_whole() {
    let mut ring = Ring::new();
    ring.frame(1, 0);
    let torn = ring.frame(1, 0);
    ring.frames(4, 1, PAGE);
    ring.damage(torn);
    assert_eq!(ring.scan(), (1, torn, EndVerdict::Corrupt), "more than were ever in flight");
    assert_eq!(ring.scan_resumed(torn, 2), (1, torn, EndVerdict::Uncertain), "the next life knows of them");
    // Of what the next life writes there only those sectors reach the medium that are the same in both.
    ring.damage(torn);
    assert_eq!(ring.scan(), (6, 6 * PAGE, EndVerdict::Clean), "whole again");
    assert_eq!(ring.scan_resumed(torn, 2), (1, torn, EndVerdict::Uncertain));
    assert_eq!(ring.scan_resumed(torn, 1), (6, 6 * PAGE, EndVerdict::Clean), "of the life that went on there");
}

#[test]
fn frames_of_several_lives_that_died_at_one_place_are_not_added_up() {
    let mut ring = Ring::new();
    ring.frame(1, 0);
    let mark = (ring.next, ring.chain);
    ring.frames(6, 1, PAGE);
    for page in 1..4 {
        ring.erase(page * PAGE);
    }
    (ring.next, ring.chain) = mark;
    let torn = ring.frame(2, PAGE);
    ring.frames(2, 2, PAGE);
    ring.damage(torn);
    assert_eq!(ring.scan(), (1, torn, EndVerdict::Uncertain));
}

#[test]
fn an_older_lap_is_a_clean_end() {
    let mut ring = Ring::new();
    ring.frames(64, 1, 0);
    let (first, chain) = (ring.next, ring.chain);
    ring.frame(1, first);
    let mut scanner = Scanner::new(RING, SALT, first, chain, 1);
    scanner.feed(Bytes::copy_from_slice(&ring.bytes));
    assert!(matches!(scanner.advance(), Scanned::Frame(_)));
    assert!(matches!(scanner.advance(), Scanned::Ended));
    assert_eq!(scanner.end().verdict, EndVerdict::Clean);
}

#[test]
fn an_unreadable_block_is_told_from_an_end() {
    let mut ring = Ring::new();
    ring.frame(1, 0);
    ring.frame(1, PAGE);
    let mut scanner = Scanner::new(RING, SALT, 0, 0, 0);
    scanner.feed_unreadable(PAGE);
    scanner.feed(Bytes::copy_from_slice(&ring.bytes[PAGE_BYTES..]));
    assert!(matches!(scanner.advance(), Scanned::Ended));
    assert_eq!(scanner.end().verdict, EndVerdict::Corrupt);
}

#[test]
fn a_newer_frame_version_is_refused() {
    let mut ring = Ring::new();
    let mut head = FrameHead {
        version: FRAME_VERSION + 1,
        salt: SALT,
        incarnation: 1,
        lsn: 0,
        durable_through: 0,
        previous_crc: 0,
        record_count: 0,
        header_bytes: 0,
        record_bytes: 0,
        payload_bytes: 0,
        crc: 0,
    };
    let area = head.encode(&[]);
    ring.bytes[..area.len()].copy_from_slice(&area);
    let mut scanner = Scanner::new(RING, SALT, 0, 0, 0);
    scanner.feed(Bytes::copy_from_slice(&ring.bytes));
    assert!(matches!(scanner.advance(), Scanned::Newer(version) if version == FRAME_VERSION + 1));
}
