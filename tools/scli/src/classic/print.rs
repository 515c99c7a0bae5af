//! The output that ScaleIO's scripts know, kept still by golden tests.

use std::fmt::Write;

use mdm_api::command::{ClusterView, MdmView, StoragePoolView, SystemView};
use mdm_api::model::{MdmRole, Sds, Volume};

/// What is shown as the version: the product's own, in ScaleIO's shape.
pub const VERSION: &str = "R3_6.0.0";

/// `8.0 GB (8192 MB)`.
fn size(bytes: u64) -> String {
    let mib = bytes >> 20;
    let (unit, whole, tenths) = if mib >= 1 << 20 {
        ("TB", mib >> 20, ((mib & ((1 << 20) - 1)) * 10) >> 20)
    } else if mib >= 1 << 10 {
        ("GB", mib >> 10, ((mib & 1023) * 10) >> 10)
    } else {
        return format!("{mib} MB ({} KB)", bytes >> 10);
    };
    let detail = if unit == "TB" { format!("{} GB", mib >> 10) } else { format!("{mib} MB") };
    format!("{whole}.{tenths} {unit} ({detail})")
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

fn domain_name(view: &SystemView, id: mdm_api::ids::ProtectionDomainId) -> &str {
    view.protection_domains.iter().find(|d| d.id == id).map_or("N/A", |d| &d.name)
}

/// Usable bytes of a pool that no volume has claimed.
fn available(view: &SystemView, pool: &StoragePoolView) -> u64 {
    let claimed: u64 = view.volumes.iter().filter(|v| v.pool == pool.pool.id).map(|v| v.size_bytes).sum();
    (pool.capacity_bytes / u64::from(pool.pool.copies.max(1))).saturating_sub(claimed)
}

/// `--query_cluster`
pub fn query_cluster(cluster: &ClusterView) -> String {
    let members = &cluster.members;
    let good = members.iter().filter(|m| m.connected).count();
    let managers: Vec<&MdmView> = members.iter().filter(|m| m.mdm.role == MdmRole::Manager).collect();
    let good_managers = managers.iter().filter(|m| m.connected).count();
    let mode = match members.len() {
        1 => "1_node".to_owned(),
        n => format!("{n}_node"),
    };
    let state = if good == members.len() { "Normal" } else { "Degraded" };
    let mut text = String::from("Cluster:\n");
    let _ = writeln!(
        text,
        "    Name: {}, Mode: {mode}, State: {state}, Active: {good}/{}, Replicas: {good_managers}/{}",
        cluster.name,
        members.len(),
        managers.len()
    );
    text.push_str("    SDC refresh with MDM IP addresses: enabled\n    Virtual IP Addresses: N/A\n");
    let is_master = |m: &MdmView| cluster.leader == Some(m.mdm.id);
    section(&mut text, "Master MDM", members.iter().filter(|m| is_master(m)));
    section(&mut text, "Slave MDMs", managers.iter().copied().filter(|m| !is_master(m) && m.mdm.voter));
    section(&mut text, "Tie-Breakers", members.iter().filter(|m| m.mdm.role == MdmRole::TieBreaker && !is_master(m)));
    section(&mut text, "Standby MDMs", managers.iter().copied().filter(|m| !is_master(m) && !m.mdm.voter));
    text
}

fn section<'a>(text: &mut String, title: &str, members: impl Iterator<Item = &'a MdmView>) {
    let mut titled = false;
    for member in members {
        if !std::mem::replace(&mut titled, true) {
            let _ = writeln!(text, "{title}:");
        }
        let status = if member.connected { "Normal" } else { "Disconnected" };
        let _ = writeln!(text, "    Name: {}, ID: 0x{}", member.mdm.name, member.mdm.id);
        let _ = writeln!(
            text,
            "        IP Addresses: {}, Management IP Addresses: {}, Port: {}, Virtual IP interfaces: N/A",
            host(&member.mdm.peer_address),
            host(&member.mdm.address),
            port(&member.mdm.peer_address)
        );
        let _ = writeln!(text, "        Status: {status}, Version: {VERSION}");
    }
}

/// `--query_all_volumes`
pub fn query_all_volumes(view: &SystemView) -> String {
    let mut text = format!("Query-all-volumes returned {} volumes\n", view.volumes.len());
    for domain in &view.protection_domains {
        let _ = writeln!(text, "Protection Domain {} Name: {}", domain.id, domain.name);
        for pool in view.storage_pools.iter().filter(|p| p.pool.protection_domain == domain.id) {
            let _ = writeln!(text, "Storage Pool {} Name: {}", pool.pool.id, pool.pool.name);
            let mut any = false;
            for volume in view.volumes.iter().filter(|v| v.pool == pool.pool.id) {
                any = true;
                let mapped = view.mappings.iter().filter(|m| m.volume == volume.id && !m.revoked).count();
                let mapped = if mapped == 0 { "Unmapped".to_owned() } else { format!("Mapped to {mapped} SDC") };
                let _ = writeln!(
                    text,
                    " Volume ID: {} Name: {} Size: {} {mapped} Thin-provisioned",
                    volume.id,
                    volume.name,
                    size(volume.size_bytes)
                );
            }
            if !any {
                text.push_str(" <No volumes defined>\n");
            }
        }
    }
    text
}

/// `--query_all_sds`
pub fn query_all_sds(view: &SystemView) -> String {
    let mut text = format!("Query-all-SDS returned {} SDS nodes.\n", view.sds.len());
    for domain in &view.protection_domains {
        let _ = writeln!(text, "\nProtection Domain {} Name: {}", domain.id, domain.name);
        for sds in view.sds.iter().filter(|s| s.protection_domain == domain.id) {
            let state = if sds.connected { "Connected, Joined" } else { "Disconnected, Joined" };
            let address = sds.addresses.first().map_or("N/A:0", String::as_str);
            let _ = writeln!(
                text,
                "SDS ID: {} Name: {} State: {state} IP: {} Port: {} Version: {VERSION}",
                sds.id,
                sds.name,
                sds.addresses.iter().map(|a| host(a)).collect::<Vec<_>>().join(","),
                port(address)
            );
        }
    }
    text
}

/// `--query_all_sdc`
pub fn query_all_sdc(view: &SystemView) -> String {
    let mut text =
        format!("MDM restricted SDC mode: Disabled\nQuery all SDC returned {} SDC nodes.\n", view.sdcs.len());
    for client in &view.sdcs {
        let state = if client.connected { "Connected" } else { "Disconnected" };
        let _ = writeln!(
            text,
            "SDC ID: {} Name: {} IP: {} State: {state} GUID: {} OS Type: LINUX Approved: yes Loaded Version: {VERSION} Installed Version: {VERSION}",
            client.sdc.id,
            client.sdc.name.as_deref().unwrap_or("N/A"),
            host(&client.sdc.address),
            client.sdc.guid
        );
    }
    text
}

/// `--query_volume`
pub fn query_volume(view: &SystemView, volume: &Volume) -> String {
    let mut text = format!(">> Volume ID: {} Name: {}\n", volume.id, volume.name);
    let _ = writeln!(text, "   Provisioning: Thin\n   Size: {}", size(volume.size_bytes));
    if let Some(pool) = view.storage_pools.iter().find(|p| p.pool.id == volume.pool) {
        let domain = pool.pool.protection_domain;
        let _ = writeln!(text, "   Storage Pool {} Name: {}", pool.pool.id, pool.pool.name);
        let _ = writeln!(text, "   Protection Domain {domain} Name: {}", domain_name(view, domain));
    }
    let mappings: Vec<_> = view.mappings.iter().filter(|m| m.volume == volume.id && !m.revoked).collect();
    if mappings.is_empty() {
        text.push_str("   Volume is unmapped\n");
    } else {
        text.push_str("   Mapped SDCs:\n");
    }
    for mapping in mappings {
        let client = view.sdcs.iter().find(|c| c.sdc.id == mapping.sdc);
        let _ = writeln!(
            text,
            "      SDC ID: {} IP: {} Name: {}",
            mapping.sdc,
            client.map_or("N/A", |c| host(&c.sdc.address)),
            client.and_then(|c| c.sdc.name.as_deref()).unwrap_or("N/A")
        );
    }
    text.push_str("   No SCSI reservations\n   Number of Direct Snapshots: 0\n");
    text
}

/// `--query_sds`
pub fn query_sds(view: &SystemView, sds: &Sds) -> String {
    let mut text = format!("SDS {} Name: {} Version: {VERSION}\n", sds.id, sds.name);
    let _ = writeln!(
        text,
        "Protection Domain: {}, Name: {}",
        sds.protection_domain,
        domain_name(view, sds.protection_domain)
    );
    let _ = writeln!(text, "IP information (total {} IPs):", sds.addresses.len());
    for (index, address) in sds.addresses.iter().enumerate() {
        let _ = writeln!(text, "         {}: {}     Role: All (SDS and SDC)", index + 1, host(address));
    }
    let _ = writeln!(text, "        Port: {}", sds.addresses.first().map_or("N/A", |a| port(a)));
    let devices: Vec<_> = view.devices.iter().filter(|d| d.device.sds == sds.id).collect();
    let _ = writeln!(text, "Device information (total {} devices):", devices.len());
    let mut failed = 0;
    for (index, d) in devices.iter().enumerate() {
        let pool = view.storage_pools.iter().find(|p| p.pool.id == d.device.pool).map_or("N/A", |p| &p.pool.name);
        failed += usize::from(d.device.error.is_some());
        let _ = writeln!(
            text,
            "         {}: Name: {}  Path: {}  Original-path: {}  ID: {}",
            index + 1,
            d.device.name,
            d.device.path,
            d.device.path,
            d.device.id
        );
        let _ = writeln!(
            text,
            "                Storage Pool: {pool}, Capacity: {} GB State: {:?}",
            d.device.size_bytes >> 30,
            d.device.state
        );
    }
    let state = if sds.connected { "Connected" } else { "Disconnected" };
    let _ = writeln!(
        text,
        "Membership-state: Joined; Connection-state: {state}; SDS-state: Normal; {failed} devices with error; 0 devices tested"
    );
    text
}

/// `--query_all`
pub fn query_all(view: &SystemView) -> String {
    let mut text = String::from("System Info:\n");
    let _ = writeln!(text, "        Product:  Ashlar Version: {VERSION}");
    let _ = writeln!(text, "        ID:      {}", view.system.id);
    let _ = writeln!(text, "        Manager ID:      0000000000000000");
    text.push_str("License info:\n        Maximum capacity: Unlimited\n        Usage time left: Unlimited\n");
    text.push_str("System settings:\n        MDM restricted SDC mode: disabled\n");
    let _ = writeln!(text, "Query all returned {} Protection Domain:", view.protection_domains.len());
    for domain in &view.protection_domains {
        let pools: Vec<_> = view.storage_pools.iter().filter(|p| p.pool.protection_domain == domain.id).collect();
        let volumes = view.volumes.iter().filter(|v| pools.iter().any(|p| p.pool.id == v.pool)).count();
        let free: u64 = pools.iter().map(|p| available(view, p)).sum();
        let _ = writeln!(
            text,
            "Protection Domain {} (Id: {}) has {} storage pools, {} Fault Sets, {} SDS nodes, {volumes} volumes and {} available for volume allocation",
            domain.name,
            domain.id,
            pools.len(),
            view.fault_sets.iter().filter(|f| f.protection_domain == domain.id).count(),
            view.sds.iter().filter(|s| s.protection_domain == domain.id).count(),
            size(free)
        );
        text.push_str("Operational state is Active\n");
        for pool in pools {
            let _ = writeln!(
                text,
                "Storage Pool {} (Id: {}) has {} volumes and {} available for volume allocation",
                pool.pool.name,
                pool.pool.id,
                view.volumes.iter().filter(|v| v.pool == pool.pool.id).count(),
                size(available(view, pool))
            );
        }
    }
    let connected = view.sds.iter().filter(|s| s.connected).count();
    let capacity: u64 = view.storage_pools.iter().map(|p| p.capacity_bytes).sum();
    let used: u64 = view.storage_pools.iter().map(|p| p.used_bytes).sum();
    let _ = writeln!(text, "SDS Summary:\n        Total {} SDS Nodes", view.sds.len());
    let _ = writeln!(text, "        {} SDS nodes have membership state 'Joined'", view.sds.len());
    let _ = writeln!(text, "        {connected} SDS nodes have connection state 'Connected'");
    let _ = writeln!(text, "        {} total capacity\n        {} in use", size(capacity), size(used));
    let provisioned: u64 = view.volumes.iter().map(|v| v.size_bytes).sum();
    let _ = writeln!(
        text,
        "Volumes summary:\n        {} thin-provisioned volumes. Total size: {}",
        view.volumes.len(),
        size(provisioned)
    );
    text
}

#[cfg(test)]
mod tests;
