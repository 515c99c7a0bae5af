//! Who is where, and how a cluster comes about: by the commands that people give.

use std::collections::BTreeMap;

use mdm_api::command::{AdminCommand, CommandAnswer, ObjectRef};
use mdm_api::ids::{DeviceId, MdmId, SdcId, SdsId, SystemId, VolumeId};
use mdm_api::model::{AccessMode, Limits};
use mdm_node::{CreateSystem, first_mdm_id};
use mdm_raft::StoreId;

use crate::clock::{MS, SECOND};
use crate::disk::Disk;
use crate::host::Host;
use crate::host::mdm::{Birth, MdmHost};
use crate::host::operator::Operator;
use crate::host::sdc::SdcHost;
use crate::host::sds::{SdsHost, Slot};
use crate::host::volume::Volume;
use crate::net::NodeId;
use crate::world::World;

/// The system's id.
pub const SYSTEM: SystemId = SystemId(0x0a51_1a2b_3c4d_5e6f);

/// Who is where.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Hosts of the metadata manager.
    pub mdm_nodes: Vec<NodeId>,
    /// Hosts of data servers.
    pub sds_nodes: Vec<NodeId>,
    /// Hosts of data clients.
    pub sdc_nodes: Vec<NodeId>,
    /// Where the people sit.
    pub operator: NodeId,
    /// Members by id.
    pub mdm_ids: BTreeMap<MdmId, NodeId>,
    /// Servers by id.
    pub sds_ids: BTreeMap<SdsId, NodeId>,
    /// Clients by id.
    pub sdc_ids: BTreeMap<SdcId, NodeId>,
    /// Volumes by their place in the plan.
    pub volumes: Vec<VolumeId>,
    /// Devices, where they were put.
    pub devices: BTreeMap<DeviceId, (NodeId, usize)>,
    /// Mappings, as they are meant to be.
    pub mappings: Vec<(VolumeId, SdcId)>,
    /// Clients give load.
    pub load: bool,
}

/// The hosts of a plan, without anything on them.
pub fn hosts(world: &mut World) {
    let plan = world.core.plan.clone();
    let core = &mut world.core;
    for _ in 0..plan.mdms {
        let node = world.hosts.len();
        core.directory.mdm_nodes.push(node);
        let mut host = MdmHost::new(node, SYSTEM, core.rng.fork());
        host.doubles_ppm = plan.doubles_ppm;
        world.hosts.push(Host::Mdm(Box::new(host)));
    }
    for _ in 0..plan.sds {
        let node = world.hosts.len();
        core.directory.sds_nodes.push(node);
        let slot = |index: usize, rng| Slot::new(format!("/dev/d{index}"), Disk::new(plan.device_bytes, rng));
        let slots = (0..plan.devices).map(|index| slot(index, core.rng.fork())).collect();
        world.hosts.push(Host::Sds(Box::new(SdsHost::new(node, SYSTEM, slots, core.rng.fork()))));
    }
    for _ in 0..plan.sdcs {
        let node = world.hosts.len();
        core.directory.sdc_nodes.push(node);
        world.hosts.push(Host::Sdc(Box::new(SdcHost::new(node, SYSTEM, core.rng.fork()))));
    }
    core.directory.operator = world.hosts.len();
    world.hosts.push(Host::Operator(Box::new(Operator::new(world.hosts.len()))));
}

/// Builds the cluster; an error says which command failed.
pub fn build(world: &mut World) -> Result<(), String> {
    let plan = world.core.plan.clone();
    members(world)?;
    command(world, AdminCommand::AddProtectionDomain { name: "pd".to_owned() })?;
    let (copies, min_isr, pg_count) = (plan.copies, plan.min_isr, plan.pg_count);
    let pool =
        AdminCommand::AddStoragePool { name: "pool".to_owned(), protection_domain: None, copies, min_isr, pg_count };
    command(world, pool)?;
    servers(world)?;
    for (place, node) in world.core.directory.sdc_nodes.clone().into_iter().enumerate() {
        let Host::Sdc(host) = &world.hosts[node] else { continue };
        let add = AdminCommand::AddSdc { guid: host.guid, name: Some(format!("sdc{place}")) };
        let id = SdcId(object(command(world, add)?)?);
        world.core.directory.sdc_ids.insert(id, node);
        if let Host::Sdc(host) = &mut world.hosts[node] {
            host.id = Some(id);
        }
    }
    for place in 0..plan.volumes {
        let size_bytes = plan.chunks << 20;
        let add = AdminCommand::AddVolume {
            name: format!("v{place}"),
            storage_pool: None,
            size_bytes,
            labels: Default::default(),
        };
        let CommandAnswer::Volume { id, .. } = command(world, add)? else { return Err("no volume".to_owned()) };
        world.core.directory.volumes.push(id);
        // Some volumes are shared.
        let clients: Vec<SdcId> = world.core.directory.sdc_ids.keys().copied().collect();
        let first = place % clients.len();
        let shared = clients.len() > 1 && world.core.rng.one_in(plan.shares);
        for client in 0..if shared { 2 } else { 1 } {
            let sdc = clients[(first + client) % clients.len()];
            map(world, id, place as u8, sdc)?;
        }
    }
    for node in world.core.directory.sdc_nodes.clone() {
        world.start(node);
    }
    Ok(())
}

fn members(world: &mut World) -> Result<(), String> {
    let nodes = world.core.directory.mdm_nodes.clone();
    let address = |node: NodeId| (format!("h{node}:6611"), format!("h{node}:9011"));
    for (place, node) in nodes.iter().copied().enumerate() {
        let store = 100 + place as u64;
        let (mdm_address, mdm_peer_address) = address(node);
        let (id, birth) = if place == 0 {
            let create = CreateSystem {
                system: SYSTEM,
                name: "simulated".to_owned(),
                authority_certificate_pem: "certificate".to_owned(),
                authority_key_pem: "key".to_owned(),
                mdm_name: "mdm0".to_owned(),
                mdm_address,
                mdm_peer_address,
                mdm_store_id: store,
                admin_password_hash: "hash".to_owned(),
                join_token_hash: [0; 32],
            };
            (first_mdm_id(SYSTEM), Birth::Create(Box::new(create)))
        } else {
            let add = AdminCommand::AddMdm {
                name: format!("mdm{place}"),
                role: mdm_api::model::MdmRole::Manager,
                address: mdm_address,
                peer_address: mdm_peer_address,
                store_id: store,
            };
            (MdmId(object(command(world, add)?)?), Birth::Join(StoreId(store)))
        };
        world.core.directory.mdm_ids.insert(id, node);
        if let Host::Mdm(host) = &mut world.hosts[node] {
            (host.id, host.birth) = (Some(id), Some(birth));
        }
        world.start(node);
        let votes =
            |world: &World| world.state().is_some_and(|state| state.mdms().get(&id).is_some_and(|mdm| mdm.voter));
        world.run_until(60 * SECOND, votes).then_some(()).ok_or(format!("member {place} does not vote"))?;
    }
    Ok(())
}

impl World {
    /// A member whose log was wiped is taken out and added again under a new id, as people do.
    pub fn replace_wiped_member(&mut self) -> Result<(), String> {
        let wiped = |world: &Self, node: NodeId| matches!(&world.hosts[node], Host::Mdm(host) if host.is_wiped);
        let nodes = self.core.directory.mdm_nodes.clone();
        let Some((place, node)) = nodes.into_iter().enumerate().find(|(_, node)| wiped(self, *node)) else {
            return Ok(());
        };
        let old = self.core.directory.mdm_ids.iter().find(|(_, other)| **other == node).map(|(id, _)| *id);
        let Some(old) = old else { return Ok(()) };
        command(self, AdminCommand::RemoveMdm { mdm: ObjectRef(old.to_string()) })?;
        self.crash(node, false);
        let store = 200 + place as u64;
        let add = AdminCommand::AddMdm {
            name: format!("new{place}"),
            role: mdm_api::model::MdmRole::Manager,
            address: format!("h{node}:6611"),
            peer_address: format!("h{node}:9011"),
            store_id: store,
        };
        let id = MdmId(object(command(self, add)?)?);
        self.core.directory.mdm_ids.remove(&old);
        self.core.directory.mdm_ids.insert(id, node);
        if let Host::Mdm(host) = &mut self.hosts[node] {
            host.wipe(StoreId(store));
            (host.id, host.is_wiped) = (Some(id), false);
        }
        self.start(node);
        let votes =
            |world: &Self| world.state().is_some_and(|state| state.mdms().get(&id).is_some_and(|mdm| mdm.voter));
        let is_done = self.run_until(60 * SECOND, votes) || self.core.watch.failure.is_some();
        is_done.then_some(()).ok_or_else(|| "liveness: the new member does not vote".to_owned())
    }
}

fn servers(world: &mut World) -> Result<(), String> {
    let plan = world.core.plan.clone();
    let nodes = world.core.directory.sds_nodes.clone();
    for (place, node) in nodes.iter().copied().enumerate() {
        let add = AdminCommand::AddSds {
            name: format!("sds{place}"),
            protection_domain: None,
            fault_set: None,
            addresses: vec![format!("h{node}:7000")],
        };
        let id = SdsId(object(command(world, add)?)?);
        world.core.directory.sds_ids.insert(id, node);
        if let Host::Sds(host) = &mut world.hosts[node] {
            host.id = Some(id);
        }
        world.start(node);
    }
    for index in 0..plan.devices {
        for place in 0..nodes.len() {
            add_device(world, place, index)?;
        }
    }
    Ok(())
}

/// Adds the device that is at a place of a server.
pub fn add_device(world: &mut World, place: usize, slot: usize) -> Result<DeviceId, String> {
    let node = world.core.directory.sds_nodes[place];
    let path = match &world.hosts[node] {
        Host::Sds(host) => host.slots[slot].path.clone(),
        _ => return Err("no server there".to_owned()),
    };
    let sds = ObjectRef(format!("sds{place}"));
    let add = AdminCommand::AddDevice { name: None, sds, storage_pool: None, path };
    let CommandAnswer::DeviceRecorded { id, .. } = command(world, add)? else { return Err("no device".to_owned()) };
    world.core.directory.devices.insert(id, (node, slot));
    Ok(id)
}

fn map(world: &mut World, volume: VolumeId, place: u8, sdc: SdcId) -> Result<(), String> {
    command(world, map_command(volume, sdc))?;
    world.core.directory.mappings.push((volume, sdc));
    let node = world.core.directory.sdc_ids[&sdc];
    let (workers, rng) = (world.core.plan.workers, world.core.rng.fork());
    if let Host::Sdc(host) = &mut world.hosts[node] {
        host.volumes.push(Volume::new(volume, place, workers, rng));
    }
    Ok(())
}

/// Maps a volume to a client.
pub fn map_command(volume: VolumeId, sdc: SdcId) -> AdminCommand {
    AdminCommand::MapVolume {
        volume: ObjectRef(volume.to_string()),
        sdc: ObjectRef(sdc.to_string()),
        access: AccessMode::ReadWrite,
        limits: Limits::default(),
        allow_multiple: true,
    }
}

/// Gives a command and waits for its answer.
pub fn command(world: &mut World, command: AdminCommand) -> Result<CommandAnswer, String> {
    let text = format!("{command:?}");
    let end = world.core.now + 120 * SECOND;
    loop {
        let number = world.operator().command(command.clone());
        world.run_until(130 * SECOND, |world| world.answer(number).is_some());
        match world.take_answer(number) {
            Some(Some(Ok(answer))) => return Ok(answer),
            Some(Some(Err(error))) => return Err(format!("{text}: {error}")),
            Some(None) | None if world.core.now < end && world.core.watch.failure.is_none() => {
                world.run_for(100 * MS);
            }
            Some(None) | None => return Err(format!("{text}: no answer")),
        }
    }
}

fn object(answer: CommandAnswer) -> Result<u64, String> {
    match answer {
        CommandAnswer::Object { id } => Ok(id),
        other => Err(format!("an object was expected: {other:?}")),
    }
}
