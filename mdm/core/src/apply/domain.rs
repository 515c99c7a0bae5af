//! Protection domains, with the keys of their servers, and fault sets.

use mdm_api::command::{CommandResult, ObjectRef};
use mdm_api::error::ErrorCode;
use mdm_api::ids::{FaultSetId, KeyId, ProtectionDomainId};
use mdm_api::map::MapKey;
use mdm_api::model::{DomainKey, FaultSet, ProtectionDomain};

use super::name::{check_name, in_use};
use super::{object, refuse};
use crate::limits::{FAULT_SETS_MAX, PROTECTION_DOMAINS_MAX};
use crate::state::State;

impl State {
    pub(super) fn add_domain(&mut self, name: &str, secret: &[u8; 32]) -> CommandResult {
        check_name(name)?;
        if self.domains.values().any(|domain| domain.name == name) {
            return in_use("protection domain", name);
        }
        if self.domains.len() >= PROTECTION_DOMAINS_MAX {
            return refuse(ErrorCode::TooMany, "There are too many protection domains", "remove one first");
        }
        let id = ProtectionDomainId(self.mint.take());
        let key = DomainKey { id: KeyId(self.mint.take()), protection_domain: id, secret: *secret };
        self.domains.insert(id, ProtectionDomain { id, name: name.to_owned() });
        self.touch(MapKey::ProtectionDomain(id));
        self.touch(MapKey::DomainKey(key.id));
        self.keys.insert(key.id, key);
        object(id.0)
    }

    pub(super) fn rename_domain(&mut self, domain: &ObjectRef, name: &str) -> CommandResult {
        let id = self.find_domain(domain)?.id;
        check_name(name)?;
        if self.domains.values().any(|other| other.id != id && other.name == name) {
            return in_use("protection domain", name);
        }
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.name = name.to_owned();
        }
        self.touch(MapKey::ProtectionDomain(id));
        object(id.0)
    }

    pub(super) fn remove_domain(&mut self, domain: &ObjectRef) -> CommandResult {
        let domain = self.find_domain(domain)?;
        let id = domain.id;
        let servers = self.sds.values().filter(|sds| sds.protection_domain == id).count();
        let pools = self.pools.values().filter(|pool| pool.protection_domain == id).count();
        let sets = self.fault_sets.values().filter(|set| set.protection_domain == id).count();
        if servers + pools + sets > 0 {
            return refuse(
                ErrorCode::ProtectionDomainNotEmpty,
                format!(
                    "Protection domain '{}' has {servers} SDSs, {pools} storage pools, {sets} fault sets",
                    domain.name
                ),
                "remove them first",
            );
        }
        self.domains.remove(&id);
        self.bury(MapKey::ProtectionDomain(id));
        let keys: Vec<KeyId> = self.keys.values().filter(|key| key.protection_domain == id).map(|key| key.id).collect();
        for key in keys {
            self.keys.remove(&key);
            self.bury(MapKey::DomainKey(key));
        }
        object(id.0)
    }

    pub(super) fn add_fault_set(&mut self, name: &str, domain: Option<&ObjectRef>) -> CommandResult {
        check_name(name)?;
        let domain = self.find_domain_or_only(domain)?.id;
        if self.fault_sets.values().any(|set| set.protection_domain == domain && set.name == name) {
            return in_use("fault set", name);
        }
        if self.fault_sets.len() >= FAULT_SETS_MAX {
            return refuse(ErrorCode::TooMany, "There are too many fault sets", "remove one first");
        }
        let id = FaultSetId(self.mint.take());
        self.fault_sets.insert(id, FaultSet { id, name: name.to_owned(), protection_domain: domain });
        self.touch(MapKey::FaultSet(id));
        object(id.0)
    }

    pub(super) fn rename_fault_set(&mut self, set: &ObjectRef, name: &str) -> CommandResult {
        let (id, domain) = self.find_fault_set(set).map(|set| (set.id, set.protection_domain))?;
        check_name(name)?;
        let same = |set: &FaultSet| set.id != id && set.protection_domain == domain && set.name == name;
        if self.fault_sets.values().any(same) {
            return in_use("fault set", name);
        }
        if let Some(set) = self.fault_sets.get_mut(&id) {
            set.name = name.to_owned();
        }
        self.touch(MapKey::FaultSet(id));
        object(id.0)
    }

    pub(super) fn remove_fault_set(&mut self, set: &ObjectRef) -> CommandResult {
        let set = self.find_fault_set(set)?;
        let id = set.id;
        let servers = self.sds.values().filter(|sds| sds.fault_set == Some(id)).count();
        if servers > 0 {
            return refuse(
                ErrorCode::FaultSetNotEmpty,
                format!("Fault set '{}' has {servers} SDSs", set.name),
                "remove them first",
            );
        }
        self.fault_sets.remove(&id);
        self.bury(MapKey::FaultSet(id));
        object(id.0)
    }
}
