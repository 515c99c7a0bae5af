//! Golden outputs: what scripts parse must not move. To change one on purpose, run with `UPDATE_GOLDEN=1`.

use mdm_api::command::{ClusterView, DeviceView, MdmView, SdcView, StoragePoolView, SystemView};
use mdm_api::epoch::{AttachGeneration, Revision, SnapSeq};
use mdm_api::ids::{
    DeviceId, DeviceIncarnation, MdmId, ProtectionDomainId, SdcId, SdsId, StoragePoolId, SystemId, VolumeId, VtreeId,
};
use mdm_api::model::{
    AccessMode, Device, DeviceState, Limits, Mapping, Mdm, MdmRole, ProtectionDomain, Sdc, Sds, StoragePool, System,
    Volume,
};

use super::*;

fn member(id: u64, name: &str, role: MdmRole, connected: bool) -> MdmView {
    let mdm = Mdm {
        id: MdmId(id),
        name: name.to_owned(),
        role,
        address: format!("10.0.0.{id}:6611"),
        peer_address: format!("10.0.0.{id}:9011"),
        store_id: id,
        voter: true,
    };
    MdmView { mdm, connected }
}

fn volume(id: u64, name: &str, gib: u64) -> Volume {
    Volume {
        id: VolumeId(id),
        name: name.to_owned(),
        pool: StoragePoolId(0x59f7_a5b8_0000_0000),
        vtree: VtreeId(id),
        size_bytes: gib << 30,
        snap_seq: SnapSeq(0),
        created_s: 0,
        removing: false,
        labels: Default::default(),
    }
}

fn view() -> SystemView {
    let domain = ProtectionDomainId(0x5db7_3068_0000_0000);
    let pool = StoragePool {
        id: StoragePoolId(0x59f7_a5b8_0000_0000),
        name: "sp1".to_owned(),
        protection_domain: domain,
        copies: 2,
        min_isr: 1,
        pg_count: 1024,
        placement_version: 1,
    };
    let pool = StoragePoolView {
        pool,
        capacity_bytes: 300 << 30,
        used_bytes: 20 << 30,
        healthy_pgs: 1024,
        degraded_pgs: 0,
        dark_pgs: 0,
        rebuild_chunks_left: 0,
        rebuild_remaining_s: None,
    };
    let sds = Sds {
        id: SdsId(0x4c4d_2f05_0000_0000),
        name: "sds1".to_owned(),
        protection_domain: domain,
        fault_set: None,
        addresses: vec!["10.0.0.11:7072".to_owned()],
        incarnation: None,
        connected: true,
    };
    let device = Device {
        id: DeviceId(0xd76c_3bd9_0000_0000),
        name: "sdb".to_owned(),
        sds: sds.id,
        pool: pool.pool.id,
        path: "/dev/sdb".to_owned(),
        incarnation: DeviceIncarnation(1),
        open_count: 1,
        opened_by: None,
        size_bytes: 298 << 30,
        state: DeviceState::Normal,
        suspect: false,
        error: None,
    };
    let sdc = Sdc {
        id: SdcId(0x6a0d_2f05_0000_0000),
        guid: "271BAD82-08EE-44F2-A2B1-7E2787C27BE1".parse().unwrap(),
        name: None,
        address: "10.0.0.21:40000".to_owned(),
    };
    let mapping = Mapping {
        volume: VolumeId(0x5a2c_67b9_0000_0000),
        sdc: sdc.id,
        access: AccessMode::ReadWrite,
        limits: Limits::default(),
        mapped: AttachGeneration(1),
        generation: AttachGeneration(1),
        opened_by: 0,
        fence_revision: Revision(0),
        fenced: true,
        revoked: false,
    };
    let members = vec![
        member(1, "mdm1", MdmRole::Manager, true),
        member(2, "mdm2", MdmRole::Manager, true),
        member(3, "tb1", MdmRole::TieBreaker, false),
    ];
    let cluster = ClusterView {
        system: SystemId(0x7822_1ddb_0dcf_f2f5),
        name: "sysname".to_owned(),
        members,
        leader: Some(MdmId(1)),
        answered_by: MdmId(1),
    };
    SystemView {
        system: System { id: cluster.system, name: "sysname".to_owned() },
        revision: Revision(9),
        protection_domains: vec![ProtectionDomain { id: domain, name: "pd1".to_owned() }],
        fault_sets: vec![],
        storage_pools: vec![pool],
        sds: vec![sds],
        devices: vec![DeviceView { device, used_bytes: 0 }],
        sdcs: vec![SdcView { sdc, connected: true, silent_ms: 0 }],
        volumes: vec![volume(0x5a2c_67b9_0000_0000, "vol1", 8), volume(0x5a2c_67ba_0000_0001, "vol2", 16)],
        mappings: vec![mapping],
        cluster,
    }
}

fn golden(name: &str, text: &str) {
    let path = format!("{}/src/classic/print/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
}

#[test]
fn classic_outputs_stay_as_scripts_know_them() {
    let view = view();
    golden("query_cluster", &query_cluster(&view.cluster));
    golden("query_all_volumes", &query_all_volumes(&view));
    golden("query_all_sds", &query_all_sds(&view));
    golden("query_all_sdc", &query_all_sdc(&view));
    golden("query_volume", &query_volume(&view, &view.volumes[0]));
    golden("query_sds", &query_sds(&view, &view.sds[0]));
    golden("query_all", &query_all(&view));
}

#[test]
fn a_pool_without_volumes_says_so() {
    let view = SystemView { volumes: vec![], mappings: vec![], ..view() };
    assert!(query_all_volumes(&view).ends_with(" <No volumes defined>\n"));
}

#[test]
fn sizes_have_a_unit_and_a_finer_one() {
    assert_eq!(size(8 << 30), "8.0 GB (8192 MB)");
    assert_eq!(size(1415 << 30), "1.3 TB (1415 GB)");
    assert_eq!(size(100 << 20), "100 MB (102400 KB)");
}
