//! Objects as rows: one list of fields for each, from which tables and JSON are made.

use mdm_api::command::SystemView;
use mdm_api::model::{AccessMode, MdmRole, User};
use serde_json::{Value, json};

/// An object's fields, in the order of the table's columns.
#[derive(Clone, Debug)]
pub struct Row(pub Vec<(&'static str, Value)>);

impl Row {
    /// A field as text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| *name == key).and_then(|(_, value)| value.as_str())
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >= 1 << shift {
            let whole = bytes >> shift;
            let tenths = (u128::from(bytes & ((1 << shift) - 1)) * 10) >> shift;
            return if tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") };
        }
    }
    format!("{bytes} B")
}

/// All objects of a noun.
pub fn rows(view: &SystemView, noun: &str) -> Vec<Row> {
    match noun {
        "system" => vec![system(view)],
        "mdm" => mdms(view),
        "protection-domain" => protection_domains(view),
        "fault-set" => fault_sets(view),
        "storage-pool" => storage_pools(view),
        "sds" => servers(view),
        "device" => devices(view),
        "sdc" => clients(view),
        "volume" => volumes(view),
        _ => Vec::new(),
    }
}

fn id(id: impl ToString) -> Value {
    Value::String(id.to_string())
}

/// The name of an object that another refers to.
fn name_of<T, I: PartialEq>(all: &[T], wanted: &I, key: impl Fn(&T) -> (&I, &str)) -> Value {
    all.iter().map(key).find(|(id, _)| *id == wanted).map_or(Value::Null, |(_, name)| json!(name))
}

fn system(view: &SystemView) -> Row {
    let sum = |field: fn(&mdm_api::command::StoragePoolView) -> u64| view.storage_pools.iter().map(field).sum::<u64>();
    let (capacity, used) = (sum(|p| p.capacity_bytes), sum(|p| p.used_bytes));
    let (healthy, degraded, dark) =
        (sum(|p| p.healthy_pgs.into()), sum(|p| p.degraded_pgs.into()), sum(|p| p.dark_pgs.into()));
    let state = match (degraded, dark) {
        (0, 0) => "healthy",
        (_, 0) => "degraded",
        _ => "unavailable",
    };
    let remaining = view.storage_pools.iter().filter_map(|p| p.rebuild_remaining_s).max();
    Row(vec![
        ("id", id(view.system.id)),
        ("name", json!(view.system.name)),
        ("state", json!(state)),
        ("mdms_connected", json!(view.cluster.members.iter().filter(|m| m.connected).count())),
        ("mdms", json!(view.cluster.members.len())),
        ("leader", view.cluster.leader.map_or(Value::Null, id)),
        ("sds_connected", json!(view.sds.iter().filter(|s| s.connected).count())),
        ("sds", json!(view.sds.len())),
        ("volumes", json!(view.volumes.len())),
        ("capacity_bytes", json!(capacity)),
        ("used_bytes", json!(used)),
        ("placement_groups_healthy", json!(healthy)),
        ("placement_groups_degraded", json!(degraded)),
        ("placement_groups_dark", json!(dark)),
        ("rebuild_chunks_left", json!(sum(|p| p.rebuild_chunks_left))),
        ("rebuild_remaining_s", remaining.map_or(Value::Null, |s| json!(s))),
        ("map_revision", json!(view.revision.0)),
    ])
}

fn mdms(view: &SystemView) -> Vec<Row> {
    let members = view.cluster.members.iter().map(|member| {
        let role = match member.mdm.role {
            MdmRole::Manager => "manager",
            MdmRole::TieBreaker => "tie-breaker",
        };
        Row(vec![
            ("id", id(member.mdm.id)),
            ("name", json!(member.mdm.name)),
            ("role", json!(role)),
            ("leader", json!(view.cluster.leader == Some(member.mdm.id))),
            ("voter", json!(member.mdm.voter)),
            ("connected", json!(member.connected)),
            ("address", json!(member.mdm.address)),
            ("peer_address", json!(member.mdm.peer_address)),
        ])
    });
    members.collect()
}

fn domain_name(view: &SystemView, domain: mdm_api::ids::ProtectionDomainId) -> Value {
    name_of(&view.protection_domains, &domain, |d| (&d.id, &d.name))
}

fn protection_domains(view: &SystemView) -> Vec<Row> {
    let rows = view.protection_domains.iter().map(|domain| {
        Row(vec![
            ("id", id(domain.id)),
            ("name", json!(domain.name)),
            (
                "storage_pools",
                json!(view.storage_pools.iter().filter(|p| p.pool.protection_domain == domain.id).count()),
            ),
            ("sds", json!(view.sds.iter().filter(|s| s.protection_domain == domain.id).count())),
        ])
    });
    rows.collect()
}

fn fault_sets(view: &SystemView) -> Vec<Row> {
    let rows = view.fault_sets.iter().map(|set| {
        Row(vec![
            ("id", id(set.id)),
            ("name", json!(set.name)),
            ("protection_domain", domain_name(view, set.protection_domain)),
            ("sds", json!(view.sds.iter().filter(|s| s.fault_set == Some(set.id)).count())),
        ])
    });
    rows.collect()
}

fn storage_pools(view: &SystemView) -> Vec<Row> {
    let rows = view.storage_pools.iter().map(|p| {
        Row(vec![
            ("id", id(p.pool.id)),
            ("name", json!(p.pool.name)),
            ("protection_domain", domain_name(view, p.pool.protection_domain)),
            ("copies", json!(p.pool.copies)),
            ("min_in_sync", json!(p.pool.min_isr)),
            ("capacity_bytes", json!(p.capacity_bytes)),
            ("used_bytes", json!(p.used_bytes)),
            ("placement_groups", json!(p.pool.pg_count)),
            ("healthy", json!(p.healthy_pgs)),
            ("degraded", json!(p.degraded_pgs)),
            ("dark", json!(p.dark_pgs)),
            ("rebuild_chunks_left", json!(p.rebuild_chunks_left)),
            ("rebuild_remaining_s", p.rebuild_remaining_s.map_or(Value::Null, |s| json!(s))),
        ])
    });
    rows.collect()
}

fn servers(view: &SystemView) -> Vec<Row> {
    let rows = view.sds.iter().map(|sds| {
        let set = sds.fault_set.map_or(Value::Null, |set| name_of(&view.fault_sets, &set, |f| (&f.id, &f.name)));
        Row(vec![
            ("id", id(sds.id)),
            ("name", json!(sds.name)),
            ("protection_domain", domain_name(view, sds.protection_domain)),
            ("fault_set", set),
            ("connected", json!(sds.connected)),
            ("addresses", json!(sds.addresses)),
            ("devices", json!(view.devices.iter().filter(|d| d.device.sds == sds.id).count())),
        ])
    });
    rows.collect()
}

fn devices(view: &SystemView) -> Vec<Row> {
    let rows = view.devices.iter().map(|d| {
        let device = &d.device;
        Row(vec![
            ("id", id(device.id)),
            ("name", json!(device.name)),
            ("sds", name_of(&view.sds, &device.sds, |s| (&s.id, &s.name))),
            ("storage_pool", name_of(&view.storage_pools, &device.pool, |p| (&p.pool.id, &p.pool.name))),
            ("path", json!(device.path)),
            ("state", json!(format!("{:?}", device.state).to_lowercase())),
            ("size_bytes", json!(device.size_bytes)),
            ("used_bytes", json!(d.used_bytes)),
            ("error", device.error.as_ref().map_or(Value::Null, |e| json!(e))),
        ])
    });
    rows.collect()
}

fn clients(view: &SystemView) -> Vec<Row> {
    let rows = view.sdcs.iter().map(|c| {
        let mapped = view.mappings.iter().filter(|m| m.sdc == c.sdc.id && !m.revoked).count();
        Row(vec![
            ("id", id(c.sdc.id)),
            ("name", json!(c.sdc.name)),
            ("guid", id(c.sdc.guid)),
            ("connected", json!(c.connected)),
            ("address", json!(c.sdc.address)),
            ("volumes", json!(mapped)),
        ])
    });
    rows.collect()
}

fn volumes(view: &SystemView) -> Vec<Row> {
    let rows = view.volumes.iter().map(|volume| {
        let mapped = view.mappings.iter().filter(|m| m.volume == volume.id && !m.revoked).map(|m| {
            let client = view.sdcs.iter().find(|c| c.sdc.id == m.sdc);
            json!({
                "sdc": id(m.sdc),
                "name": client.and_then(|c| c.sdc.name.clone()),
                "access": match m.access { AccessMode::ReadWrite => "read-write", AccessMode::ReadOnly => "read-only" },
                "iops": m.limits.iops,
                "bandwidth_bytes_per_s": m.limits.bandwidth_bytes_per_s,
            })
        });
        Row(vec![
            ("id", id(volume.id)),
            ("name", json!(volume.name)),
            ("storage_pool", name_of(&view.storage_pools, &volume.pool, |p| (&p.pool.id, &p.pool.name))),
            ("size_bytes", json!(volume.size_bytes)),
            ("state", json!(if volume.removing { "removing" } else { "normal" })),
            ("mapped_to", Value::Array(mapped.collect())),
            ("created_s", json!(volume.created_s)),
            ("labels", json!(volume.labels)),
        ])
    });
    rows.collect()
}

/// Accounts.
pub fn users(users: &[User]) -> Vec<Row> {
    let rows = users.iter().map(|user| {
        let role = format!("{:?}", user.role).to_lowercase();
        Row(vec![("id", id(user.id)), ("name", json!(user.name)), ("role", json!(role))])
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(8 << 30), "8 GiB");
        assert_eq!(size((1 << 40) + (1 << 39)), "1.5 TiB");
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }
}
