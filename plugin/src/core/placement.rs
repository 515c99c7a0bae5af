//! Which pool a new volume goes to.

use mdm_api::command::{StoragePoolView, SystemView};
use mdm_api::ids::StoragePoolId;
use mdm_api::model::StoragePool;

use super::options::{BadOption, Given};

/// What the configuration says for volumes that say nothing.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// Pool, by name or id.
    pub pool: Option<String>,
    /// Protection domain, by name or id.
    pub protection_domain: Option<String>,
}

/// True if the pool is what the options ask for.
pub fn matches(view: &SystemView, pool: &StoragePool, given: &Given) -> bool {
    let domain = view.protection_domains.iter().find(|domain| domain.id == pool.protection_domain);
    let is = |wanted: &str, id: String, name: &str| wanted == name || wanted == id;
    given.get("pool").is_none_or(|wanted| is(wanted, pool.id.to_string(), &pool.name))
        && given.copies().is_none_or(|wanted| wanted == pool.copies)
        && given
            .get("protection-domain")
            .is_none_or(|wanted| domain.is_some_and(|domain| is(wanted, domain.id.to_string(), &domain.name)))
}

/// The pool for a new volume: what the options leave, narrowed by the defaults where that leaves something, then the one
/// with the most room.
pub fn choose(view: &SystemView, given: &Given, defaults: &Defaults) -> Result<StoragePoolId, BadOption> {
    let fitting: Vec<&StoragePoolView> =
        view.storage_pools.iter().filter(|pool| matches(view, &pool.pool, given)).collect();
    if fitting.is_empty() {
        return Err(BadOption(nothing_fits(view, given)));
    }
    let is_default = |pool: &StoragePool| {
        let domain = view.protection_domains.iter().find(|domain| domain.id == pool.protection_domain);
        let is = |wanted: &str, id: String, name: &str| wanted == name || wanted == id;
        defaults.pool.as_deref().is_none_or(|wanted| is(wanted, pool.id.to_string(), &pool.name))
            && defaults
                .protection_domain
                .as_deref()
                .is_none_or(|wanted| domain.is_some_and(|domain| is(wanted, domain.id.to_string(), &domain.name)))
    };
    let preferred: Vec<&StoragePoolView> = fitting.iter().copied().filter(|pool| is_default(&pool.pool)).collect();
    let candidates = if preferred.is_empty() { fitting } else { preferred };
    let room = |pool: &&StoragePoolView| pool.capacity_bytes.saturating_sub(pool.used_bytes);
    let best = candidates.iter().max_by_key(|pool| (room(pool), std::cmp::Reverse(pool.pool.id)));
    best.map(|pool| pool.pool.id).ok_or_else(|| BadOption(nothing_fits(view, given)))
}

fn nothing_fits(view: &SystemView, given: &Given) -> String {
    let asked = ["pool", "protection-domain", "copies"];
    let asked: Vec<String> =
        asked.iter().filter_map(|name| given.get(name).map(|value| format!("{name}={value}"))).collect();
    let pools: Vec<String> =
        view.storage_pools.iter().map(|pool| format!("{} ({} copies)", pool.pool.name, pool.pool.copies)).collect();
    if pools.is_empty() {
        return "the system has no storage pool: make one with `scli storage-pool add`".to_owned();
    }
    format!("no storage pool has {}; there are: {}", asked.join(" and "), pools.join(", "))
}
