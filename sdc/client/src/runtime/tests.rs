//! Promises of the client over real sockets.

mod allocations;
mod server;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mdm_api::config::PgConfig;
use mdm_api::epoch::{AttachGeneration, Epoch, Revision, SnapSeq, Term};
use mdm_api::ids::{
    DeviceId, DeviceIncarnation, KeyId, PgId, ProcessIncarnation, ProtectionDomainId, SdsId, StoragePoolId, VolumeId,
    VtreeId,
};
use mdm_api::map::{ClusterMap, MapDelta, MapObject};
use mdm_api::model::{AccessMode, Device, DeviceState, Limits, Mapping, Sds, StoragePool};
use mdm_api::ticket::Ticket;
use tokio::sync::watch;

use crate::io::IoError;
use crate::limits::OPERATIONS_MAX;
use crate::runtime::{Answer, Client, Cluster, Opening, Volume};
use crate::session::Policy;
use server::{Disk, SDC, SYSTEM, Server, key};

const SIZE: u64 = 8 << 20;
const VOLUME: VolumeId = VolumeId(7);

struct TestCluster {
    map: watch::Sender<Arc<ClusterMap>>,
}

impl Cluster for TestCluster {
    fn map(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.map.subscribe()
    }

    fn open(&self, volume: VolumeId) -> Answer<Opening> {
        let ticket = Ticket {
            key: KeyId(4),
            system: SYSTEM,
            volume,
            pool: StoragePoolId(5),
            sdc: SDC,
            access: AccessMode::ReadWrite,
            generation: AttachGeneration(1),
            revision: Revision(1),
            expires_s: 2000,
            not_before_s: 1000,
        };
        let credential = ticket.issue(&key());
        Box::pin(async move { Ok(Opening { generation: AttachGeneration(1), credential, opener: 9 }) })
    }

    fn renew(&self, volume: VolumeId, opener: u64) -> Answer<Opening> {
        assert_eq!(opener, 9, "asked for by whom it was opened");
        self.open(volume)
    }
}

impl TestCluster {
    fn change(&self, changed: Vec<MapObject>) {
        self.map.send_modify(|map| {
            let (from, mut new) = (map.revision(), ClusterMap::clone(map));
            new.apply(&MapDelta { from, to: from.next(), changed, removed: Vec::new() }).unwrap();
            *map = Arc::new(new);
        });
    }
}

fn volume_object(size_bytes: u64) -> MapObject {
    MapObject::Volume(Volume_ {
        id: VOLUME,
        name: "v".to_owned(),
        pool: StoragePoolId(5),
        vtree: VtreeId(8),
        size_bytes,
        snap_seq: SnapSeq(0),
        created_s: 0,
        removing: false,
        labels: Default::default(),
    })
}

type Volume_ = mdm_api::model::Volume;

fn mapping_object(revoked: bool) -> MapObject {
    MapObject::Mapping(Mapping {
        volume: VOLUME,
        sdc: SDC,
        access: AccessMode::ReadWrite,
        limits: Limits::default(),
        mapped: AttachGeneration(1),
        generation: AttachGeneration(1),
        opened_by: 1,
        fence_revision: Revision(1),
        fenced: true,
        revoked,
    })
}

fn first_map(address: SocketAddr) -> Vec<MapObject> {
    let mut objects = vec![
        volume_object(SIZE),
        mapping_object(false),
        MapObject::StoragePool(StoragePool {
            id: StoragePoolId(5),
            name: "p".to_owned(),
            protection_domain: ProtectionDomainId(1),
            copies: 2,
            min_isr: 1,
            pg_count: 4,
            placement_version: 1,
        }),
        MapObject::Sds(Sds {
            id: SdsId(1),
            name: "s".to_owned(),
            protection_domain: ProtectionDomainId(1),
            fault_set: None,
            addresses: vec!["127.0.0.1:1".to_owned(), address.to_string()],
            incarnation: Some(ProcessIncarnation(1)),
            connected: true,
        }),
        MapObject::Device(Device {
            id: DeviceId(1),
            name: "d".to_owned(),
            sds: SdsId(1),
            pool: StoragePoolId(5),
            path: "/d".to_owned(),
            incarnation: DeviceIncarnation(1),
            open_count: 1,
            opened_by: None,
            size_bytes: 1 << 30,
            state: DeviceState::Normal,
            suspect: false,
            error: None,
        }),
    ];
    objects.extend((0..4).map(|index| {
        MapObject::Pg(PgConfig {
            pg: PgId { pool: StoragePoolId(5), index },
            epoch: Epoch(1),
            term: Term(1),
            primary: Some(DeviceId(1)),
            primary_incarnation: ProcessIncarnation(1),
            isr: vec![DeviceId(1)],
            learners: Vec::new(),
            previous_certified_dead: false,
            heir: None,
        })
    }));
    objects
}

struct Set {
    disk: Arc<Mutex<Disk>>,
    server: Option<Server>,
    cluster: Arc<TestCluster>,
    client: Client,
}

impl Set {
    async fn up() -> Self {
        let disk = Arc::new(Mutex::new(Disk { content: vec![0; SIZE as usize], ..Default::default() }));
        let server = Server::start(Arc::clone(&disk), None).await;
        let cluster = Arc::new(TestCluster { map: watch::Sender::new(Arc::default()) });
        cluster.change(first_map(server.address));
        let client = Client::start(cluster.clone(), SYSTEM, SDC);
        Self { disk, server: Some(server), cluster, client }
    }

    async fn open(&self, policy: Policy) -> Volume {
        self.client.open(VOLUME, policy).await.unwrap()
    }

    async fn restart_server(&mut self) {
        let address = self.server.take().unwrap().kill().await;
        self.server = Some(Server::start(Arc::clone(&self.disk), Some(address)).await);
    }
}

fn pattern(seed: u8, length: usize) -> Bytes {
    (0..length).map(|index| seed.wrapping_add((index % 251) as u8)).collect()
}

async fn read(volume: &Volume, offset: u64, length: u64) -> Vec<u8> {
    volume.read(offset, length).await.unwrap().concat()
}

#[tokio::test]
async fn what_is_written_is_read_at_any_alignment() {
    let set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    assert_eq!(volume.size_bytes(), SIZE);
    for (offset, length) in [(0, 4096), (5, 1), (4095, 2), ((1 << 20) - 100, 3 << 20), (SIZE - 1, 1)] {
        let data = pattern(offset as u8, length);
        volume.write(offset, data.clone()).await.unwrap();
        assert_eq!(read(&volume, offset, length as u64).await, data, "{offset}+{length}");
    }
    volume.zero(100, 2 << 20).await.unwrap();
    assert_eq!(read(&volume, 100, 2 << 20).await, vec![0; 2 << 20]);
    assert_eq!(volume.status(0, 3 * 4096).await.unwrap(), [true, false, false]);
    volume.flush().await.unwrap();
    let beyond = volume.read(SIZE, 1).await;
    assert_eq!(beyond, Err(IoError::OutOfRange { offset: SIZE, length: 1, size: SIZE }));
    let stats = volume.stats().await.unwrap();
    assert_eq!((stats.writes, stats.zeros, stats.statuses, stats.errors), (5, 1, 1, 1));
}

#[tokio::test]
async fn a_killed_server_is_a_pause_and_every_write_takes_effect_once() {
    let mut set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16_u64 {
        let volume = volume.clone();
        writers.spawn(async move {
            for round in 0..50 {
                let data = pattern(round as u8, 8192);
                volume.write(writer * 100_000 + 3, data.clone()).await.unwrap();
                assert_eq!(read(&volume, writer * 100_000 + 3, 8192).await, data);
            }
        });
    }
    for _ in 0..5 {
        let before = set.disk.lock().unwrap().applied;
        while set.disk.lock().unwrap().applied < before + 60 {
            tokio::task::yield_now().await;
        }
        set.restart_server().await;
    }
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
    // Writes that cross a chunk boundary count for each part.
    let parts: u64 = (0..16_u64).map(|w| ((w * 100_000 + 3 + 8191) >> 20) - ((w * 100_000 + 3) >> 20) + 1).sum();
    assert_eq!(set.disk.lock().unwrap().applied, parts * 50);
    assert!(volume.stats().await.unwrap().connections_lost >= 5);
}

#[tokio::test]
async fn a_fenced_mapping_ends_the_volume_and_says_so() {
    let set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    volume.write(0, pattern(1, 4096)).await.unwrap();
    set.disk.lock().unwrap().fenced = true;
    assert_eq!(volume.write(0, pattern(2, 4096)).await, Err(IoError::Revoked));
    let mut state = volume.watch();
    let state = state.wait_for(|state| state.failed.is_some()).await.unwrap();
    assert_eq!(state.failed, Some(IoError::Revoked));
}

#[tokio::test]
async fn a_revoked_mapping_in_the_map_fails_what_is_under_way() {
    let set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    set.disk.lock().unwrap().deaf = true;
    let write = volume.write(0, pattern(1, 4096));
    let revoke = async { set.cluster.change(vec![mapping_object(true)]) };
    let (result, ()) = tokio::join!(write, revoke);
    assert_eq!(result, Err(IoError::Revoked));
}

#[tokio::test]
async fn a_server_without_the_key_is_not_believed() {
    let set = Set::up().await;
    set.disk.lock().unwrap().impostor = true;
    let volume = set.open(Policy { give_up_ms: Some(300), ..Policy::default() }).await;
    assert_eq!(volume.write(0, pattern(1, 4096)).await, Err(IoError::TimedOut));
    assert_eq!(set.disk.lock().unwrap().applied, 0);
    set.disk.lock().unwrap().impostor = false;
    while volume.write(0, pattern(1, 4096)).await == Err(IoError::TimedOut) {}
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096));
}

#[tokio::test]
async fn a_refused_ticket_is_renewed_and_tried_again() {
    let set = Set::up().await;
    set.disk.lock().unwrap().refuse_tickets = 3;
    let volume = set.open(Policy::default()).await;
    volume.write(0, pattern(1, 4096)).await.unwrap();
}

#[tokio::test]
async fn dropped_ios_give_their_room_back() {
    let set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    volume.flush().await.unwrap();
    set.disk.lock().unwrap().deaf = true;
    for _ in 0..3 {
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..OPERATIONS_MAX + 50 {
            let volume = volume.clone();
            reads.spawn(async move { volume.read(0, 4096).await });
        }
        while volume.stats().await.unwrap().requests == 0 {}
        reads.abort_all();
        while reads.join_next().await.is_some() {}
    }
    set.disk.lock().unwrap().deaf = false;
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..OPERATIONS_MAX {
        let volume = volume.clone();
        reads.spawn(async move { volume.read(0, 4096).await });
    }
    while let Some(result) = reads.join_next().await {
        result.unwrap().unwrap();
    }
}

#[tokio::test]
async fn more_than_fits_waits_for_its_turn() {
    let set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    let mut writes = tokio::task::JoinSet::new();
    for index in 0..2000_u64 {
        let volume = volume.clone();
        writes.spawn(async move { volume.write(index * 4096, pattern(index as u8, 4096)).await });
    }
    while let Some(result) = writes.join_next().await {
        result.unwrap().unwrap();
    }
    for index in 0..2000 {
        assert_eq!(read(&volume, index * 4096, 4096).await, pattern(index as u8, 4096));
    }
}

#[tokio::test]
async fn a_grown_volume_is_announced_and_used() {
    let set = Set::up().await;
    let volume = set.open(Policy::default()).await;
    set.disk.lock().unwrap().content.resize(2 * SIZE as usize, 0);
    set.cluster.change(vec![volume_object(2 * SIZE)]);
    let mut state = volume.watch();
    state.wait_for(|state| state.size_bytes == 2 * SIZE).await.unwrap();
    volume.write(SIZE, pattern(3, 4096)).await.unwrap();
    assert_eq!(read(&volume, SIZE, 4096).await, pattern(3, 4096));
}

#[tokio::test]
async fn a_volume_that_is_dropped_is_closed_at_its_servers() {
    let set = Set::up().await;
    let (first, second) = (set.open(Policy::default()).await, set.open(Policy::default()).await);
    first.write(0, pattern(1, 4096)).await.unwrap();
    second.flush().await.unwrap();
    drop(first);
    while set.disk.lock().unwrap().closed_handles == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&second, 0, 4096).await, pattern(1, 4096));
}

#[tokio::test]
async fn garbage_from_a_server_ends_that_connection_only() {
    let set = Set::up().await;
    let volume = set.open(Policy { give_up_ms: Some(5000), ..Policy::default() }).await;
    volume.write(0, pattern(1, 4096)).await.unwrap();
    // A server that speaks something else takes the address of one that was to come.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bogus = listener.local_addr().unwrap();
    let speaker = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The client may have hung up already.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 welcome to another protocol").await;
        }
    });
    let good = set.server.as_ref().unwrap().address;
    let Some(MapObject::Sds(mut sds)) = first_map(good).into_iter().find(|o| matches!(o, MapObject::Sds(_))) else {
        panic!("no server in the map")
    };
    sds.addresses = vec![bogus.to_string(), good.to_string()];
    set.cluster.change(vec![MapObject::Sds(sds)]);
    let mut set = set;
    set.restart_server().await;
    let patience = Duration::from_secs(10);
    let data = tokio::time::timeout(patience, read(&volume, 0, 4096)).await.unwrap();
    assert_eq!(data, pattern(1, 4096));
    speaker.abort();
}

/// What a request of 4 KiB allocates, its memory for what is read included: a change that allocates more is noticed.
const WRITE_ALLOCATIONS: f64 = 5.1;
/// As `WRITE_ALLOCATIONS`.
const READ_ALLOCATIONS: f64 = 10.1;
/// Requests of a look at allocations.
const LOOK: u64 = 2000;

#[tokio::test]
async fn the_steady_state_allocates_no_more_than_is_known() {
    let disk = Arc::new(Mutex::new(Disk { content: vec![0; SIZE as usize], ..Default::default() }));
    let (tell, told) = tokio::sync::oneshot::channel();
    let serving = Arc::clone(&disk);
    // On a thread of its own: what the server allocates is not counted.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start(serving, None).await;
            tell.send(server.address).unwrap();
            std::future::pending::<()>().await
        });
    });
    let cluster = Arc::new(TestCluster { map: watch::Sender::new(Arc::default()) });
    cluster.change(first_map(told.await.unwrap()));
    let client = Client::start(cluster.clone(), SYSTEM, SDC);
    let volume = client.open(VOLUME, Policy::default()).await.unwrap();
    let data = pattern(1, 4096);
    let each = |before: u64| (allocations::so_far() - before) as f64 / LOOK as f64;
    let (mut writes, mut reads) = (0.0, 0.0);
    // The first look warms up.
    for _ in 0..2 {
        let before = allocations::so_far();
        for index in 0..LOOK {
            volume.write(index % 2000 * 4096, data.clone()).await.unwrap();
        }
        writes = each(before);
        let before = allocations::so_far();
        for index in 0..LOOK {
            assert_eq!(volume.read(index % 2000 * 4096, 4096).await.unwrap().len(), 1);
        }
        reads = each(before);
    }
    println!("allocations: {writes:.2} for each write, {reads:.2} for each read");
    assert!(writes <= WRITE_ALLOCATIONS && reads <= READ_ALLOCATIONS, "{writes} for each write, {reads} for each read");
}
