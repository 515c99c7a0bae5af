//! From what people write to the object that they mean.
//!
//! 16 hex digits are tried as an id first, then as a name; clients are also found by GUID and by address. A parent may be
//! left out where there is only one to choose.

use mdm_api::command::ObjectRef;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::Guid;
use mdm_api::model::{Device, FaultSet, Mdm, ProtectionDomain, Sdc, Sds, StoragePool, User, Volume};

use super::State;

fn find<'a, T: 'a>(
    objects: impl Iterator<Item = &'a T> + Clone,
    reference: &ObjectRef,
    id: impl Fn(&T) -> u64,
    is_named: impl Fn(&T, &str) -> bool,
    absent: impl FnOnce() -> CommandError,
    kind: &str,
) -> Result<&'a T, CommandError> {
    let text = reference.0.as_str();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let number = u64::from_str_radix(digits, 16).ok();
        if let Some(object) = objects.clone().find(|object| Some(id(object)) == number) {
            return Ok(object);
        }
    }
    let mut named = objects.filter(|object| is_named(object, text));
    match (named.next(), named.next()) {
        (Some(object), None) => Ok(object),
        (Some(_), Some(_)) => Err(CommandError::new(
            ErrorCode::InvalidArgument,
            format!("There is more than one {kind} that '{text}' may mean"),
            "name it by its id",
        )),
        (None, _) => Err(absent()),
    }
}

fn only<'a, T>(
    mut objects: impl Iterator<Item = &'a T>,
    kind: &str,
    none: ErrorCode,
    add: &str,
) -> Result<&'a T, CommandError> {
    match (objects.next(), objects.next()) {
        (Some(object), None) => Ok(object),
        (None, _) => Err(CommandError::new(none, format!("There is no {kind} yet"), add)),
        (Some(_), Some(_)) => Err(CommandError::new(
            ErrorCode::InvalidArgument,
            format!("There is more than one {kind}"),
            "say which one is meant",
        )),
    }
}

macro_rules! resolve {
    ($name:ident, $map:ident, $object:ty, $named:expr, $code:ident, $message:literal, $remedy:literal, $kind:literal) => {
        pub(crate) fn $name(&self, reference: &ObjectRef) -> Result<&$object, CommandError> {
            let absent =
                || CommandError::new(ErrorCode::$code, format!(concat!($message, " '{}'"), reference.0), $remedy);
            find(self.$map.values(), reference, |object| object.id.0, $named, absent, $kind)
        }
    };
}

impl State {
    resolve!(
        find_mdm,
        mdms,
        Mdm,
        |mdm, text| mdm.name == text,
        MdmNotFound,
        "Could not find the MDM",
        "`scli mdm list` shows all",
        "MDM"
    );
    resolve!(
        find_domain,
        domains,
        ProtectionDomain,
        |domain, text| domain.name == text,
        ProtectionDomainNotFound,
        "Could not find Protection Domain",
        "`scli protection-domain list` shows all",
        "protection domain"
    );
    resolve!(
        find_fault_set,
        fault_sets,
        FaultSet,
        |set, text| set.name == text,
        FaultSetNotFound,
        "Could not find the Fault Set",
        "`scli fault-set list` shows all",
        "fault set"
    );
    resolve!(
        find_pool,
        pools,
        StoragePool,
        |pool, text| pool.name == text,
        StoragePoolNotFound,
        "Could not find Storage Pool",
        "`scli storage-pool list` shows all",
        "storage pool"
    );
    resolve!(
        find_sds,
        sds,
        Sds,
        |sds, text| sds.name == text || sds.addresses.iter().any(|a| is_at(a, text)),
        SdsNotFound,
        "Could not find SDS",
        "`scli sds list` shows all",
        "SDS"
    );
    resolve!(
        find_device,
        devices,
        Device,
        |device, text| device.name == text || device.path == text,
        DeviceNotFound,
        "Could not find the device",
        "`scli device list` shows all",
        "device"
    );
    resolve!(find_sdc, sdcs, Sdc, is_sdc, SdcNotFound, "Could not find the SDC", "`scli sdc list` shows all", "SDC");
    resolve!(
        find_volume,
        volumes,
        Volume,
        |volume, text| !volume.removing && volume.name == text,
        VolumeNotFound,
        "Could not find the volume",
        "`scli volume list` shows all",
        "volume"
    );

    pub(crate) fn find_user(&self, reference: &ObjectRef) -> Result<&User, CommandError> {
        let absent = || {
            let message = format!("Could not find the user '{}'", reference.0);
            CommandError::new(ErrorCode::UserNotFound, message, "`scli user list` shows all")
        };
        let users = self.users.values().map(|record| &record.user);
        find(users, reference, |user| user.id.0, |user, text| user.name == text, absent, "user")
    }

    pub(crate) fn find_domain_or_only(&self, reference: Option<&ObjectRef>) -> Result<&ProtectionDomain, CommandError> {
        match reference {
            Some(reference) => self.find_domain(reference),
            None => only(
                self.domains.values(),
                "protection domain",
                ErrorCode::ProtectionDomainNotFound,
                "add one with `scli protection-domain add`",
            ),
        }
    }

    /// The pool that is meant; without a reference the only one `within` (a server's domain, or all).
    pub(crate) fn find_pool_or_only(
        &self,
        reference: Option<&ObjectRef>,
        within: impl Fn(&StoragePool) -> bool,
    ) -> Result<&StoragePool, CommandError> {
        match reference {
            Some(reference) => self.find_pool(reference),
            None => only(
                self.pools.values().filter(|pool| within(pool)),
                "storage pool",
                ErrorCode::StoragePoolNotFound,
                "add one with `scli storage-pool add`",
            ),
        }
    }
}

/// True if the text is the address, with or without its port.
fn is_at(address: &str, text: &str) -> bool {
    address == text || address.rsplit_once(':').is_some_and(|(host, _)| host == text)
}

fn is_sdc(sdc: &Sdc, text: &str) -> bool {
    sdc.name.as_deref() == Some(text)
        || text.parse::<Guid>().is_ok_and(|guid| guid == sdc.guid)
        || is_at(&sdc.address, text)
}
