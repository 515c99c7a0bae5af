//! Stories: scripted runs in text files, which a person can read and review (`tests/sim/stories`).
//!
//! A line is a command; lines that begin with `>` say what came of it, and are compared. Everything else is the same as in
//! a seed: the production cores, the checkers at every step, the check of the clients' history at the end.
//!
//! ```text
//! cluster sds 2 groups 1     mdms, sds, devices, sdcs, volumes, copies, min-isr, groups, chunks, device-mib, retained-kib;
//!                            the rest by default
//! write a at 0 [by sdc1]     a block gets a value, which the story names
//! read 0 [by sdc1]           what a block holds
//! answers                    what came of requests that had no answer in time
//! fill-some                  eight blocks of each chunk are written
//! fill                       whole chunks are written, one after the other, until there is no answer
//! crash sds0, start sds0     also: power-off, power-on, pause, resume
//! cut sds0 mdm0              both ways; cut-one-way; heal mends all links
//! disk sds0 fails-writes     also: fails-flush, hangs, rots, wipes, notes and rolls-back
//! wait redundant             also: dark, served, isr 1, feeding, answered
//! run 500 ms                 time passes
//! groups                     who keeps what
//! copied                     what went to learners since their servers started, chunks and parts of chunks
//! unmap sdc0, map sdc0       by the operator; also remove-volume, replace sds0, return sds0
//! hit F4c                    whether the row was reached
//! ```

use std::collections::BTreeMap;

use mdm_api::command::{AdminCommand, ObjectRef};
use mdm_api::ids::DeviceId;

use crate::check::linear;
use crate::clock::{MS, SECOND, Time};
use crate::cluster::{self, add_device, command, map_command};
use crate::core::Input;
use crate::disk::Disk;
use crate::history::{BLOCK, Outcome};
use crate::host::Host;
use crate::host::sds::Slot;
use crate::net::NodeId;
use crate::plan::Plan;
use crate::trace::Trace;
use crate::workload::{Drawn, read, write};
use crate::world::World;

/// How long a story waits for an answer before it goes on.
const PATIENCE: Time = 2 * SECOND;
/// How long it waits for a state of the cluster.
const BOUND: Time = 90 * SECOND;
const CHUNK: u64 = 1 << 20;

/// Plays a story: its text, with what came of each command.
pub fn play(text: &str, prints: bool) -> Result<String, String> {
    let mut story = None;
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with('>')) {
        out.push_str(line);
        out.push('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        if words[0] == "cluster" {
            story = Some(Story::new(&words[1..], prints)?);
            continue;
        }
        let story = story.as_mut().ok_or("a story begins with its cluster")?;
        for said in story.command(&words).map_err(|error| format!("{line}: {error}"))? {
            out.push_str(&format!("> {said}\n"));
        }
        if let Some((_, failure)) = &story.world.core.watch.failure {
            return Err(format!("{line}: {failure}"));
        }
    }
    let story = story.ok_or("a story begins with its cluster")?;
    linear::check(&story.world.core.history).map_err(|text| format!("not linearizable (P2): {text}"))?;
    Ok(out)
}

struct Story {
    world: World,
    names: BTreeMap<u64, String>,
    /// Requests without an answer.
    open: Vec<(usize, String)>,
}

fn number(words: &[&str], name: &str, default: u64) -> Result<u64, String> {
    let Some(at) = words.iter().position(|word| *word == name) else { return Ok(default) };
    words.get(at + 1).and_then(|word| word.parse().ok()).ok_or_else(|| format!("{name} wants a number"))
}

impl Story {
    fn new(words: &[&str], prints: bool) -> Result<Self, String> {
        let mut plan = Plan::draw(1);
        plan.mdms = number(words, "mdms", 1)? as usize;
        plan.sds = number(words, "sds", 2)? as usize;
        plan.devices = number(words, "devices", 1)? as usize;
        plan.sdcs = number(words, "sdcs", 1)? as usize;
        plan.copies = number(words, "copies", 2)? as u8;
        plan.min_isr = number(words, "min-isr", 1)? as u8;
        plan.pg_count = number(words, "groups", 1)? as u32;
        plan.chunks = number(words, "chunks", 2)?;
        plan.device_bytes = number(words, "device-mib", 128)? << 20;
        plan.retained_bytes = (number(words, "retained-kib", 1 << 16)? as usize) << 10;
        plan.volumes = number(words, "volumes", 1)? as usize;
        plan.scrub_period_ms = number(words, "scrub-ms", 0)?;
        (plan.shares, plan.workers, plan.journal_bytes) = (1, 4, 8 << 20);
        (plan.clock_spread_ppm, plan.doubles_ppm, plan.faults, plan.linger) = (0, 0, Vec::new(), 0);
        let mut world = World::new(1, plan, Trace::new(prints));
        cluster::build(&mut world)?;
        if !world.run_until(BOUND, World::is_redundant) {
            return Err("the new cluster is not redundant".to_owned());
        }
        world.run_for(3 * SECOND);
        Ok(Self { world, names: BTreeMap::new(), open: Vec::new() })
    }

    fn node(&self, name: &str) -> Result<NodeId, String> {
        let directory = &self.world.core.directory;
        let (nodes, digits) = match name.split_at_checked(3) {
            Some(("mdm", digits)) => (&directory.mdm_nodes, digits),
            Some(("sds", digits)) => (&directory.sds_nodes, digits),
            Some(("sdc", digits)) => (&directory.sdc_nodes, digits),
            _ => return Err(format!("{name} is no host")),
        };
        let place: Option<usize> = digits.parse().ok();
        place.and_then(|place| nodes.get(place)).copied().ok_or_else(|| format!("there is no {name}"))
    }

    fn device_name(&self, device: DeviceId) -> String {
        let directory = &self.world.core.directory;
        let Some((node, slot)) = directory.devices.get(&device) else { return "?".to_owned() };
        let place = directory.sds_nodes.iter().position(|other| other == node).unwrap_or_default();
        if *slot == 0 { format!("sds{place}") } else { format!("sds{place}/{slot}") }
    }

    fn command(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        let world = &mut self.world;
        match words {
            ["write", name, "at", block, rest @ ..] => {
                let block: u64 = block.parse().map_err(|_| "which block?")?;
                let drawn = write(&mut world.core.history, 0, block * BLOCK as u64, BLOCK);
                if let Some((_, value)) = drawn.writes.first() {
                    self.names.insert(*value, (*name).to_owned());
                }
                self.ask(0, drawn, format!("write {name}"), rest)
            }
            ["read", block, rest @ ..] => {
                let block: u64 = block.parse().map_err(|_| "which block?")?;
                self.ask(0, read(block * BLOCK as u64, BLOCK), format!("read {block}"), rest)
            }
            ["fill"] => self.fill(),
            ["fill-some"] => self.fill_some(),
            ["answers"] => Ok(self.answers()),
            ["crash", host] => self.at(host, |world, node| world.crash(node, false)),
            ["start", host] => self.at(host, World::start),
            ["power-off", host] => self.at(host, |world, node| world.crash(node, true)),
            ["power-on", host] => self.at(host, World::power_on),
            ["pause", host] => self.at(host, World::pause),
            ["resume", host] => self.at(host, World::resume),
            ["cut", from, to] => {
                let (from, to) = (self.node(from)?, self.node(to)?);
                self.cut(&[(from, to), (to, from)]);
                Ok(Vec::new())
            }
            ["cut-one-way", from, to] => {
                let link = (self.node(from)?, self.node(to)?);
                self.cut(&[link]);
                Ok(Vec::new())
            }
            ["heal"] => {
                let nodes = world.core.plan.nodes();
                for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
                    if world.core.net.is_cut(from, to) {
                        world.core.with_net(|net, now, out| net.heal(now, from, to, out));
                    }
                }
                Ok(Vec::new())
            }
            ["disk", host, what] => self.disk(host, what),
            ["wait", what @ ..] => self.wait(what),
            ["run", count, unit] => {
                let count: u64 = count.parse().map_err(|_| "how long?")?;
                world.run_for(count * if *unit == "s" { SECOND } else { MS });
                Ok(Vec::new())
            }
            ["copied"] => {
                let shards = world.hosts.iter().filter_map(|host| match host {
                    Host::Sds(host) => host.shard(),
                    _ => None,
                });
                let bytes: u64 = shards.map(|shard| shard.figures().resync_bytes_total).sum();
                Ok(vec![format!("{} KiB", bytes >> 10)])
            }
            ["groups"] => Ok(self.groups()),
            ["unmap", host] => {
                let (volume, sdc) = self.mapping(host)?;
                let sdc = Some(ObjectRef(sdc.to_string()));
                let unmap = AdminCommand::UnmapVolume { volume: ObjectRef(volume.to_string()), sdc };
                let said = self.operate(unmap);
                if said == ["done"] {
                    let watch = &self.world.core.watch;
                    let sdc = self.mapping(host)?.1;
                    watch.fence(&mut self.world.core.history, volume, sdc);
                    self.world.core.marks.hit("F26");
                }
                Ok(said)
            }
            ["map", host] => {
                let (volume, sdc) = self.mapping(host)?;
                Ok(self.operate(map_command(volume, sdc)))
            }
            ["remove-volume"] => {
                let volume = world.core.directory.volumes[0];
                Ok(self.operate(AdminCommand::RemoveVolume { volume: ObjectRef(volume.to_string()) }))
            }
            ["replace", host] => self.replace(host),
            ["return", host] => self.give_back(host),
            ["hit", row] => {
                world.collect_marks();
                Ok(vec![if world.core.marks.count(row) > 0 { "yes" } else { "no" }.to_owned()])
            }
            _ => Err("no such command".to_owned()),
        }
    }

    fn at(&mut self, host: &str, work: impl FnOnce(&mut World, NodeId)) -> Result<Vec<String>, String> {
        let node = self.node(host)?;
        work(&mut self.world, node);
        self.world.mark();
        Ok(Vec::new())
    }

    fn cut(&mut self, links: &[(NodeId, NodeId)]) {
        for (from, to) in links {
            self.world.core.with_net(|net, now, out| net.cut(now, *from, *to, out));
        }
        self.world.mark();
    }

    fn mapping(&self, host: &str) -> Result<(mdm_api::ids::VolumeId, mdm_api::ids::SdcId), String> {
        let (node, directory) = (self.node(host)?, &self.world.core.directory);
        let sdc = directory.sdc_ids.iter().find(|(_, other)| **other == node).map(|(id, _)| *id);
        Ok((directory.volumes[0], sdc.ok_or("it is no client")?))
    }

    fn operate(&mut self, admin: AdminCommand) -> Vec<String> {
        match command(&mut self.world, admin) {
            Ok(_) => vec!["done".to_owned()],
            Err(text) => vec![text.rsplit("}: ").next().unwrap_or_default().to_owned()],
        }
    }

    /// One request, and what came of it within the story's patience.
    fn ask(&mut self, volume: usize, drawn: Drawn, what: String, rest: &[&str]) -> Result<Vec<String>, String> {
        let host = match rest {
            ["by", host] => host,
            [] => "sdc0",
            _ => return Err("by whom?".to_owned()),
        };
        let node = self.node(host)?;
        let (op, errors) = (self.world.core.history.ops.len(), self.world.core.history.medium_errors);
        let Host::Sdc(client) = &mut self.world.hosts[node] else { return Err("it is no client".to_owned()) };
        client.volumes.get_mut(volume).ok_or("it has no such volume")?.ask(drawn);
        self.world.core.later(node, 0, Input::Wake);
        let now = self.world.core.local(node);
        self.world.core.arm(node, now);
        self.world.run_until(PATIENCE, |world| {
            let history = &world.core.history;
            history.medium_errors > errors || history.ops.get(op).is_some_and(|op| op.outcome != Outcome::Pending)
        });
        if self.world.core.history.medium_errors > errors {
            return Ok(vec!["no good copy".to_owned()]);
        }
        Ok(vec![self.outcome(op).unwrap_or_else(|| {
            self.open.push((op, what));
            "no answer".to_owned()
        })])
    }

    fn outcome(&self, op: usize) -> Option<String> {
        let op = self.world.core.history.ops.get(op).filter(|op| op.outcome == Outcome::Done)?;
        if op.kind == crate::history::Kind::Write {
            return Some("done".to_owned());
        }
        let value = op.cells.first().map_or(0, |(_, value)| *value);
        Some(if value == 0 {
            "zeros".to_owned()
        } else {
            self.names.get(&value).cloned().unwrap_or("filler".to_owned())
        })
    }

    fn answers(&mut self) -> Vec<String> {
        let open = std::mem::take(&mut self.open);
        let mut said = Vec::new();
        for (op, what) in open {
            match self.outcome(op) {
                Some(outcome) => said.push(format!("{what}: {outcome}")),
                None => {
                    said.push(format!("{what}: no answer"));
                    self.open.push((op, what));
                }
            }
        }
        said
    }

    fn fill(&mut self) -> Result<Vec<String>, String> {
        let (volumes, chunks) = (self.world.core.plan.volumes, self.world.core.plan.chunks);
        for (volume, chunk) in (0..volumes).flat_map(|volume| (0..chunks).map(move |chunk| (volume, chunk))) {
            let drawn = write(&mut self.world.core.history, volume as u8, chunk * CHUNK, CHUNK as usize);
            if self.ask(volume, drawn, format!("write of chunk {chunk}"), &[])? != ["done"] {
                return Ok(vec![format!("there is no answer any more in volume {volume}")]);
            }
        }
        Ok(vec!["all chunks are written".to_owned()])
    }

    /// Eight blocks of each chunk.
    fn fill_some(&mut self) -> Result<Vec<String>, String> {
        for round in 0..self.world.core.plan.chunks {
            let drawn = write(&mut self.world.core.history, 0, round * CHUNK + 64 * BLOCK as u64, 8 * BLOCK);
            self.ask(0, drawn, "write".to_owned(), &[])?;
        }
        Ok(Vec::new())
    }

    fn disk(&mut self, host: &str, what: &str) -> Result<Vec<String>, String> {
        let node = self.node(host)?;
        if matches!(what, "fails-writes" | "fails-flush" | "hangs") {
            self.world.mark_device(node, 0);
        }
        let data = self.world.core.plan.data_offset();
        let recorded = self.world.recorded_openings(node, 0);
        let Host::Sds(server) = &mut self.world.hosts[node] else { return Err("it has no disk".to_owned()) };
        let slot = &mut server.slots[0];
        match what {
            "fails-writes" => slot.disk.condition.fails_writes = true,
            "fails-flush" => slot.disk.condition.fails_flush = true,
            "hangs" => slot.disk.condition.hangs = true,
            "rots" => {
                self.world.core.watch.may_lose_blocks = true;
                slot.disk.rot_all(data);
            }
            "wipes" => slot.disk.wipe(),
            "notes" => {
                slot.has_older_state(recorded);
            }
            "rolls-back" => slot.roll_back(),
            _ => return Err("no such fault".to_owned()),
        }
        Ok(Vec::new())
    }

    fn wait(&mut self, what: &[&str]) -> Result<Vec<String>, String> {
        let configs = |world: &World| -> Vec<mdm_api::config::PgConfig> {
            world.state().map_or_else(Vec::new, |state| state.pgs().values().map(|r| r.config.clone()).collect())
        };
        let holds: Box<dyn Fn(&World) -> bool> = match what {
            ["redundant"] => Box::new(World::is_redundant),
            ["answered"] => Box::new(|world| world.core.history.pending() == 0),
            ["feeding"] => Box::new(|world| {
                world.hosts.iter().any(|host| match host {
                    Host::Sds(host) => host.shard().is_some_and(|shard| shard.leaders().any(|(.., r)| r.is_feeding())),
                    _ => false,
                })
            }),
            ["dark"] => Box::new(move |world| configs(world).iter().all(|config| config.primary.is_none())),
            ["served"] => Box::new(move |world| {
                configs(world).iter().all(|config| {
                    config.primary.is_some() && world.core.watch.protocol.serving(config.pg) == config.term
                })
            }),
            ["isr", count] => {
                let count: usize = count.parse().map_err(|_| "how many?")?;
                Box::new(move |world| configs(world).iter().all(|config| config.isr.len() == count))
            }
            _ => return Err("wait for what?".to_owned()),
        };
        if self.world.run_until(BOUND, holds) {
            return Ok(vec!["it is".to_owned()]);
        }
        self.world.core.trace.line(self.world.core.now, || self.world.situation());
        Ok(vec!["not within 90 s".to_owned()])
    }

    fn groups(&self) -> Vec<String> {
        let Some(state) = self.world.state() else { return Vec::new() };
        let names = |devices: &[DeviceId]| {
            let names: Vec<String> = devices.iter().map(|device| self.device_name(*device)).collect();
            if names.is_empty() { "nobody".to_owned() } else { names.join(" ") }
        };
        let line = |record: &mdm_core::state::PgRecord| {
            let config = &record.config;
            let primary = config.primary.map_or("nobody".to_owned(), |primary| self.device_name(primary));
            let (isr, learners) = (names(&config.isr), names(&config.learners));
            format!("group {}: led by {primary}, in sync {isr}, learning {learners}", config.pg.index)
        };
        state.pgs().values().map(line).collect()
    }

    /// The device in the first place of a server is taken out, and a new one put into the next place.
    fn replace(&mut self, host: &str) -> Result<Vec<String>, String> {
        let node = self.node(host)?;
        let place = self.world.core.directory.sds_nodes.iter().position(|other| *other == node).ok_or("no server")?;
        let device = self.world.core.directory.devices.iter().find(|(_, at)| **at == (node, 0)).map(|(id, _)| *id);
        let device = device.ok_or("there is no device")?;
        let (size, rng) = (self.world.core.plan.device_bytes, self.world.core.rng.fork());
        let Host::Sds(server) = &mut self.world.hosts[node] else { return Err("it has no disk".to_owned()) };
        let slot = server.slots.len();
        server.slots.push(Slot::new(format!("/dev/d{slot}"), Disk::new(size, rng)));
        add_device(&mut self.world, place, slot)?;
        Ok(self.operate(AdminCommand::RemoveDevice { device: ObjectRef(device.to_string()), force: false }))
    }

    /// It is put back, and its server restarted, which believes that it is still its own (F32).
    fn give_back(&mut self, host: &str) -> Result<Vec<String>, String> {
        let node = self.node(host)?;
        let device = self.world.core.directory.devices.iter().find(|(_, at)| **at == (node, 0)).map(|(id, _)| *id);
        let Host::Sds(server) = &mut self.world.hosts[node] else { return Err("it has no disk".to_owned()) };
        server.remember(device.ok_or("there is no device")?, 0);
        self.world.core.marks.hit("F32");
        self.world.crash(node, false);
        self.world.start(node);
        self.world.run_for(5 * SECOND);
        let Host::Sds(server) = &self.world.hosts[node] else { return Err("it has no disk".to_owned()) };
        let is_used = server.shard().is_some_and(|shard| shard.replicas().any(|(_, on, _)| Some(on) == device));
        Ok(vec![if is_used { "it is used" } else { "it is not used" }.to_owned()])
    }
}
