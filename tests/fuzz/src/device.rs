//! Whole devices: what recovery makes of them.
//!
//! The samples are the golden images. A case is the list of their pages; a page that is broken gets its checksum back, and
//! whatever refers to it is told, so that nonsense arrives where only sense was expected.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mdm_api::epoch::{Nanos, SnapSeq};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::crc32c;
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest};
use sds_store::open::{OpenParameters, Opener};
use sds_store::request::{Answer, Event, Output, Request, Token};
use sds_store::store::Store;

use crate::mutate::Random;

const SIZE: u64 = 8 << 20;
const PAGE: usize = 4096;

const GOLDEN: [&[u8]; 2] = [
    include_bytes!("../../../sds/store/tests/golden/version-1-settled.image"),
    include_bytes!("../../../sds/store/tests/golden/version-1-crashed.image"),
];

/// Pages by number.
type Pages = BTreeMap<u64, Vec<u8>>;

/// Reads an image; stops at what makes no sense.
fn pages_of(mut bytes: &[u8]) -> Pages {
    let mut pages = Pages::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<10>() {
        let number = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
        let length = usize::from(u16::from_le_bytes([head[8], head[9]]));
        let (length, is_repeated) = if length == usize::from(u16::MAX) { (8, true) } else { (length, false) };
        if length > PAGE || rest.len() < length || number >= SIZE / PAGE as u64 {
            return pages;
        }
        let (page, rest) = rest.split_at(length);
        let mut page = if is_repeated { page.repeat(PAGE / 8) } else { page.to_vec() };
        page.resize(PAGE, 0);
        pages.insert(number, page);
        bytes = rest;
    }
    pages
}

fn image_of(pages: &Pages) -> Vec<u8> {
    let page = |(number, page): (&u64, &Vec<u8>)| [&number.to_le_bytes()[..], &4096_u16.to_le_bytes(), page].concat();
    pages.iter().flat_map(page).collect()
}

/// The golden images, each page at its length.
pub fn images() -> Vec<Vec<u8>> {
    GOLDEN.iter().map(|image| image_of(&pages_of(image))).collect()
}

/// Their blocks of metadata.
pub fn metadata() -> Vec<Vec<u8>> {
    GOLDEN.iter().flat_map(|image| pages_of(image).into_values()).filter(|page| page.starts_with(b"ASMP")).collect()
}

fn seal(page: &mut [u8], at: usize) {
    page[at..at + 4].fill(0);
    let crc = crc32c(page);
    page[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Seals frames, then metadata from the leaves up, then the super blocks.
pub fn mend(bytes: &mut Vec<u8>, random: &mut Random) {
    if random.chance(10) {
        return;
    }
    let mut pages = pages_of(bytes);
    pages.values_mut().filter(|page| page.starts_with(b"ASJF")).for_each(|page| seal(page, 68));
    let mut crcs: BTreeMap<(u8, u64, u64), u32> = BTreeMap::new();
    for kind in [3, 2, 1] {
        for page in pages.values_mut().filter(|page| page.starts_with(b"ASMP") && page[6] == kind) {
            if kind < 3 {
                refresh(page, kind + 1, &crcs);
            }
            seal(page, 32);
            let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"));
            let crc = u32::from_le_bytes(page[32..36].try_into().expect("four bytes"));
            crcs.insert((kind, word(16), word(24)), crc);
        }
    }
    for page in pages.values_mut().filter(|page| page.starts_with(b"ASHLARSB")) {
        let generation = u64::from_le_bytes(page[184..192].try_into().expect("eight bytes"));
        if let Some(crc) = crcs.get(&(1, 0, generation)) {
            page[220..224].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c(&page[..4092]);
        page[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    *bytes = image_of(&pages);
}

/// Puts the checksums of blocks one level down into the references to them.
fn refresh(page: &mut [u8], kind: u8, crcs: &BTreeMap<(u8, u64, u64), u32>) {
    for (index, reference) in page[64..].chunks_exact_mut(16).enumerate() {
        let generation = u64::from_le_bytes(reference[..8].try_into().expect("eight bytes"));
        if let Some(crc) = crcs.get(&(kind, index as u64, generation)) {
            reference[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

fn carry_out(pages: &mut Pages, request: DiskRequest) -> DiskDone {
    let result = match request.op {
        DiskOp::Read { offset, length } if offset + u64::from(length) <= SIZE => {
            let mut buffer = AlignedBuf::zeroed(length as usize);
            for (number, at) in (offset / PAGE as u64..).zip(buffer.chunks_exact_mut(PAGE)) {
                if let Some(page) = pages.get(&number) {
                    at.copy_from_slice(page);
                }
            }
            Ok(buffer.freeze())
        }
        DiskOp::Read { .. } => Err(DiskError::Io),
        DiskOp::Write { offset, buffers, .. } => {
            let all = buffers.concat();
            for (number, page) in (offset / PAGE as u64..).zip(all.chunks_exact(PAGE)) {
                pages.insert(number, page.to_vec());
            }
            Ok(Bytes::new())
        }
        DiskOp::Flush | DiskOp::Discard { .. } => Ok(Bytes::new()),
    };
    DiskDone { id: request.id, result }
}

/// Asks a store and carries out what it wants until it has nothing more to do.
fn ask(store: &mut Store, pages: &mut Pages, request: Request) -> Option<Answer> {
    let mut queue = VecDeque::from([Event::Request { token: Token(1), request }]);
    let (mut out, mut answer) = (Vec::new(), None);
    while let Some(event) = queue.pop_front() {
        store.step(Nanos(1), event, &mut out);
        for output in out.drain(..) {
            match output {
                Output::Disk(request) => queue.push_back(Event::Disk(carry_out(pages, request))),
                Output::Done { token: Token(1), result } => answer = result.ok(),
                Output::Done { .. }
                | Output::WantState { .. }
                | Output::BadBlock { .. }
                | Output::Damaged { .. }
                | Output::Failed { .. } => {}
            }
        }
    }
    answer
}

/// Opens it, and reads what it says that it has.
pub fn check(bytes: &[u8]) {
    let mut pages = pages_of(bytes);
    let mut opener = Opener::new(OpenParameters { size_bytes: SIZE, ..OpenParameters::default() });
    let mut queue = Vec::new();
    opener.start(&mut queue).expect("large enough for super blocks");
    let mut queue = VecDeque::from(queue);
    let mut more = Vec::new();
    let opened = loop {
        let request = queue.pop_front().expect("an opening ends with a result");
        if let Some(result) = opener.step(carry_out(&mut pages, request), &mut more) {
            break result;
        }
        queue.extend(more.drain(..));
    };
    let Ok(mut opened) = opened else { return };
    for group in opened.recovered.pgs {
        let Some(Answer::Chunks(chunks)) = ask(&mut opened.store, &mut pages, Request::ListChunks { pg: group.pg })
        else {
            continue;
        };
        for (layer, _) in chunks.into_iter().take(4) {
            let newest = LayerKey { snap_seq: SnapSeq(u64::MAX), ..layer };
            ask(&mut opened.store, &mut pages, Request::Read { layer: newest, blocks: BlockRange::WHOLE });
        }
    }
}
