//! Storage pools and the first table of their groups.

use mdm_api::command::{CommandResult, ObjectRef};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{PgId, StoragePoolId};
use mdm_api::limits::{PG_COUNT_DEFAULT, PG_COUNT_MAX};
use mdm_api::map::MapKey;
use mdm_api::model::StoragePool;
use mdm_api::placement::PLACEMENT_VERSION;

use super::name::{check_name, in_use};
use super::{object, refuse};
use crate::limits::{PGS_MAX, STORAGE_POOLS_MAX};
use crate::placement::{initial_table, slots};
use crate::state::{Appointment, PgRecord, State};

impl State {
    pub(super) fn add_pool(
        &mut self,
        name: &str,
        domain: Option<&ObjectRef>,
        copies: u8,
        min_isr: u8,
        pg_count: u32,
    ) -> CommandResult {
        check_name(name)?;
        let domain = self.find_domain_or_only(domain)?.id;
        if self.pools.values().any(|pool| pool.protection_domain == domain && pool.name == name) {
            return in_use("storage pool", name);
        }
        if !(2..=3).contains(&copies) {
            return refuse(ErrorCode::InvalidArgument, format!("A pool cannot keep {copies} copies"), "say 2 or 3");
        }
        // Two copies: ScaleIO's behaviour, one survivor serves and is rebuilt at once. Three: two must hold a write.
        let min_isr = if min_isr == 0 { copies - 1 } else { min_isr };
        if min_isr > copies {
            return refuse(
                ErrorCode::InvalidArgument,
                format!("{copies} copies can never have {min_isr} in sync"),
                format!("say 1 to {copies}"),
            );
        }
        let pg_count = if pg_count == 0 { PG_COUNT_DEFAULT } else { pg_count };
        if !pg_count.is_power_of_two() || pg_count > PG_COUNT_MAX {
            return refuse(
                ErrorCode::InvalidArgument,
                format!("A pool cannot have {pg_count} placement groups"),
                format!("use a power of two up to {PG_COUNT_MAX}"),
            );
        }
        let groups: u64 = self.pools.values().map(|pool| u64::from(pool.pg_count)).sum();
        if self.pools.len() >= STORAGE_POOLS_MAX || groups + u64::from(pg_count) > PGS_MAX {
            return refuse(
                ErrorCode::TooMany,
                "There are too many storage pools or placement groups",
                "remove a pool, or use fewer placement groups",
            );
        }
        let id = StoragePoolId(self.mint.take());
        let pool = StoragePool {
            id,
            name: name.to_owned(),
            protection_domain: domain,
            copies,
            min_isr,
            pg_count,
            placement_version: PLACEMENT_VERSION,
        };
        self.pools.insert(id, pool);
        self.touch(MapKey::StoragePool(id));
        object(id.0)
    }

    pub(super) fn rename_pool(&mut self, pool: &ObjectRef, name: &str) -> CommandResult {
        let (id, domain) = self.find_pool(pool).map(|pool| (pool.id, pool.protection_domain))?;
        check_name(name)?;
        let same = |pool: &StoragePool| pool.id != id && pool.protection_domain == domain && pool.name == name;
        if self.pools.values().any(same) {
            return in_use("storage pool", name);
        }
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.name = name.to_owned();
        }
        self.touch(MapKey::StoragePool(id));
        object(id.0)
    }

    pub(super) fn remove_pool(&mut self, pool: &ObjectRef) -> CommandResult {
        let pool = self.find_pool(pool)?;
        let (id, name) = (pool.id, pool.name.clone());
        let volumes = self.volumes.values().filter(|volume| volume.pool == id).count();
        let devices = self.devices.values().filter(|device| device.pool == id).count();
        if volumes + devices > 0 {
            return refuse(
                ErrorCode::StoragePoolNotEmpty,
                format!("Storage pool '{name}' has {volumes} volumes and {devices} devices"),
                "remove them first",
            );
        }
        self.discard_table(id);
        self.pools.remove(&id);
        self.bury(MapKey::StoragePool(id));
        object(id.0)
    }

    /// Makes the groups of a pool, at its first volume: by then the devices are there, and nothing has to be moved. What
    /// it would take is said if there are too few.
    pub(super) fn make_table(&mut self, pool: StoragePoolId) -> Result<(), CommandError> {
        let Some(record) = self.pools.get(&pool) else { return Ok(()) };
        if self.pgs_of(pool).next().is_some() {
            return Ok(());
        }
        let copies = usize::from(record.copies);
        let mut ready = slots(self, pool);
        ready.retain(|device, _| self.is_fit(*device));
        let table = initial_table(&ready, copies, record.pg_count).map_err(|units| {
            CommandError::new(
                ErrorCode::TooFewFaultUnits,
                format!(
                    "Storage pool '{}' keeps {copies} copies and has connected devices of only {units} fault sets or SDSs",
                    record.name
                ),
                format!("add devices on {} more with `scli device add`, and start their SDSs", copies - units),
            )
        })?;
        let revision = self.next_revision();
        for (index, members) in (0..).zip(table) {
            let pg = PgId { pool, index };
            let device = members[0];
            let incarnation = self.sds_of(device).and_then(|sds| sds.incarnation).expect("a fit device has a process");
            self.pgs.insert(pg, PgRecord::fresh(pg, &members, Appointment { device, incarnation }, revision));
            self.touch(MapKey::Pg(pg));
        }
        Ok(())
    }

    /// Drops the groups of a pool that has no volumes: there is nothing in them.
    pub(super) fn discard_table(&mut self, pool: StoragePoolId) {
        let groups: Vec<PgId> = self.pgs_of(pool).map(|record| record.config.pg).collect();
        for pg in groups {
            self.pgs.remove(&pg);
            self.bury(MapKey::Pg(pg));
        }
    }
}
