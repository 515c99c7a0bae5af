//! The table of verbs.

use std::collections::BTreeMap;

use super::arguments::{Argument, Kind, Values};
use super::{AccountChange, Call, Verb};
use crate::command::AdminCommand as Admin;
use crate::error::{CommandError, ErrorCode as E};
use crate::limits::PG_COUNT_MAX;
use crate::model::{AccessMode, Limits, UserRole};

type Made = Result<Call, CommandError>;

const fn required(name: &'static str, kind: Kind, help: &'static str) -> Argument {
    Argument { name, kind, required: true, positional: false, repeated: false, help }
}

const fn optional(name: &'static str, kind: Kind, help: &'static str) -> Argument {
    Argument { name, kind, required: false, positional: false, repeated: false, help }
}

/// The object that the verb is about: by position, by id or name.
const fn target(name: &'static str, help: &'static str) -> Argument {
    Argument { name, kind: Kind::Object, required: true, positional: true, repeated: false, help }
}

const NAME: Argument = required("name", Kind::Name, "Its name: up to 31 letters, digits and = + / . _ -");
const NEW_NAME: Argument = required("new-name", Kind::Name, "The new name: up to 31 letters, digits and = + / . _ -");
const DOMAIN: Argument =
    optional("protection-domain", Kind::Object, "Its protection domain; may be left out where there is only one");
const POOL: Argument =
    optional("storage-pool", Kind::Object, "Its storage pool; may be left out where there is only one");
const FORCE: Argument = optional("force", Kind::Flag, "Do it although data loses copies; never the last good one");
const IOPS: Argument =
    optional("iops", Kind::Number { min: 0, max: u64::MAX }, "Requests per second at most; 0: no limit");
const BANDWIDTH: Argument = optional("bandwidth", Kind::Size, "Bytes per second at most, such as 100MiB; 0B: no limit");

const MONITOR: UserRole = UserRole::Monitor;
const CONFIGURE: UserRole = UserRole::Configure;
const ADMINISTRATOR: UserRole = UserRole::Administrator;
const SECURITY: UserRole = UserRole::Security;

const fn verb(
    noun: &'static str,
    verb: &'static str,
    about: &'static str,
    arguments: &'static [Argument],
    role: UserRole,
    errors: &'static [E],
    make: fn(&Values) -> Made,
) -> Verb {
    Verb { noun, verb, aliases: &[], about, arguments, role, errors, make }
}

const fn list(noun: &'static str, about: &'static str) -> Verb {
    verb(noun, "list", about, &[], MONITOR, &[], |_| Ok(Call::List))
}

const fn show(noun: &'static str, about: &'static str, arguments: &'static [Argument], errors: &'static [E]) -> Verb {
    verb(noun, "show", about, arguments, MONITOR, errors, |v| Ok(Call::Show(v.object("object"))))
}

fn change(command: Admin) -> Made {
    Ok(Call::Change(command))
}

fn limits(v: &Values) -> Result<Limits, CommandError> {
    let bandwidth_bytes_per_s = if v.text_opt("bandwidth").is_some() { v.size("bandwidth")? } else { 0 };
    Ok(Limits { iops: v.number("iops")?, bandwidth_bytes_per_s })
}

fn narrow<T: TryFrom<u64>>(v: &Values, name: &str) -> Result<T, CommandError> {
    let number = v.number(name)?;
    let error = || CommandError::new(E::InvalidArgument, format!("--{name} {number}"), "give a smaller number");
    T::try_from(number).map_err(|_| error())
}

/// Every verb.
pub static VERBS: &[Verb] = &[
    // The system.
    verb("system", "show", "Show the system: capacity, health, rebuild", &[], MONITOR, &[], |_| Ok(Call::List)),
    verb("system", "rename", "Rename the system", &[NEW_NAME], ADMINISTRATOR, &[E::NameTooLong, E::NameInvalid], |v| {
        change(Admin::RenameSystem { name: v.text("new-name") })
    }),
    verb(
        "system",
        "join-token",
        "Make a new token with which a daemon on another host joins; it is shown once",
        &[],
        ADMINISTRATOR,
        &[],
        |_| Ok(Call::JoinToken),
    ),
    // Metadata managers. They are added by joining: see `mdm join`.
    list("mdm", "List the members of the metadata manager and who leads"),
    show("mdm", "Show a member", &[target("object", "The member")], &[E::MdmNotFound]),
    verb(
        "mdm",
        "rename",
        "Rename a member",
        &[target("mdm", "The member"), NEW_NAME],
        ADMINISTRATOR,
        &[E::MdmNotFound],
        |v| change(Admin::RenameMdm { mdm: v.object("mdm"), name: v.text("new-name") }),
    ),
    verb(
        "mdm",
        "remove",
        "Remove a member",
        &[target("mdm", "The member")],
        ADMINISTRATOR,
        &[E::MdmNotFound, E::WrongState],
        |v| change(Admin::RemoveMdm { mdm: v.object("mdm") }),
    ),
    // Protection domains.
    verb("protection-domain", "add", "Add a protection domain", &[NAME], ADMINISTRATOR, &[E::NameInUse], |v| {
        change(Admin::AddProtectionDomain { name: v.text("name") })
    }),
    list("protection-domain", "List the protection domains"),
    show(
        "protection-domain",
        "Show a protection domain",
        &[target("object", "The domain")],
        &[E::ProtectionDomainNotFound],
    ),
    verb(
        "protection-domain",
        "rename",
        "Rename a protection domain",
        &[target("protection-domain", "The domain"), NEW_NAME],
        ADMINISTRATOR,
        &[E::ProtectionDomainNotFound, E::NameInUse],
        |v| {
            let protection_domain = v.object("protection-domain");
            change(Admin::RenameProtectionDomain { protection_domain, name: v.text("new-name") })
        },
    ),
    verb(
        "protection-domain",
        "remove",
        "Remove an empty protection domain",
        &[target("protection-domain", "The domain")],
        ADMINISTRATOR,
        &[E::ProtectionDomainNotFound, E::ProtectionDomainNotEmpty],
        |v| change(Admin::RemoveProtectionDomain { protection_domain: v.object("protection-domain") }),
    ),
    // Fault sets.
    verb(
        "fault-set",
        "add",
        "Add a fault set",
        &[NAME, DOMAIN],
        ADMINISTRATOR,
        &[E::NameInUse, E::ProtectionDomainNotFound],
        |v| change(Admin::AddFaultSet { name: v.text("name"), protection_domain: v.object_opt("protection-domain") }),
    ),
    list("fault-set", "List the fault sets"),
    show("fault-set", "Show a fault set", &[target("object", "The fault set")], &[E::FaultSetNotFound]),
    verb(
        "fault-set",
        "rename",
        "Rename a fault set",
        &[target("fault-set", "The fault set"), NEW_NAME],
        ADMINISTRATOR,
        &[E::FaultSetNotFound, E::NameInUse],
        |v| change(Admin::RenameFaultSet { fault_set: v.object("fault-set"), name: v.text("new-name") }),
    ),
    verb(
        "fault-set",
        "remove",
        "Remove an empty fault set",
        &[target("fault-set", "The fault set")],
        ADMINISTRATOR,
        &[E::FaultSetNotFound, E::FaultSetNotEmpty],
        |v| change(Admin::RemoveFaultSet { fault_set: v.object("fault-set") }),
    ),
    // Storage pools.
    verb(
        "storage-pool",
        "add",
        "Add a storage pool",
        &[
            NAME,
            DOMAIN,
            optional("copies", Kind::Number { min: 2, max: 3 }, "Copies of every block: 2 (default) or 3"),
            optional(
                "min-in-sync",
                Kind::Number { min: 1, max: 3 },
                "Writes block while fewer copies are in sync; default 1 of 2, 2 of 3",
            ),
            optional(
                "placement-groups",
                Kind::Number { min: 1, max: PG_COUNT_MAX as u64 },
                "Units of placement, a power of two, fixed for life; default 1024",
            ),
        ],
        ADMINISTRATOR,
        &[E::NameInUse, E::ProtectionDomainNotFound, E::InvalidArgument],
        |v| {
            let copies: u8 = narrow(v, "copies")?;
            change(Admin::AddStoragePool {
                name: v.text("name"),
                protection_domain: v.object_opt("protection-domain"),
                copies: if copies == 0 { 2 } else { copies },
                min_isr: narrow(v, "min-in-sync")?,
                pg_count: narrow(v, "placement-groups")?,
            })
        },
    ),
    list("storage-pool", "List the storage pools"),
    show("storage-pool", "Show a storage pool", &[target("object", "The pool")], &[E::StoragePoolNotFound]),
    verb(
        "storage-pool",
        "rename",
        "Rename a storage pool",
        &[target("storage-pool", "The pool"), NEW_NAME],
        ADMINISTRATOR,
        &[E::StoragePoolNotFound, E::NameInUse],
        |v| change(Admin::RenameStoragePool { storage_pool: v.object("storage-pool"), name: v.text("new-name") }),
    ),
    verb(
        "storage-pool",
        "remove",
        "Remove a storage pool without volumes and devices",
        &[target("storage-pool", "The pool")],
        ADMINISTRATOR,
        &[E::StoragePoolNotFound, E::StoragePoolNotEmpty],
        |v| change(Admin::RemoveStoragePool { storage_pool: v.object("storage-pool") }),
    ),
    // Data servers.
    verb(
        "sds",
        "add",
        "Record a data server; then let its daemon join under this name",
        &[
            NAME,
            DOMAIN,
            optional("fault-set", Kind::Object, "Its fault set; without one it is a fault unit of its own"),
            Argument {
                name: "address",
                kind: Kind::Address,
                required: true,
                positional: false,
                repeated: true,
                help: "Where it serves data, host:port; may be repeated",
            },
        ],
        ADMINISTRATOR,
        &[E::NameInUse, E::ProtectionDomainNotFound, E::FaultSetNotFound],
        |v| {
            change(Admin::AddSds {
                name: v.text("name"),
                protection_domain: v.object_opt("protection-domain"),
                fault_set: v.object_opt("fault-set"),
                addresses: v.texts("address"),
            })
        },
    ),
    list("sds", "List the data servers"),
    show("sds", "Show a data server", &[target("object", "The server")], &[E::SdsNotFound]),
    verb(
        "sds",
        "rename",
        "Rename a data server",
        &[target("sds", "The server"), NEW_NAME],
        ADMINISTRATOR,
        &[E::SdsNotFound, E::NameInUse],
        |v| change(Admin::RenameSds { sds: v.object("sds"), name: v.text("new-name") }),
    ),
    verb(
        "sds",
        "remove",
        "Remove a data server whose devices were removed",
        &[target("sds", "The server"), FORCE],
        ADMINISTRATOR,
        &[E::SdsNotFound, E::WrongState],
        |v| change(Admin::RemoveSds { sds: v.object("sds"), force: v.flag("force") }),
    ),
    // Devices.
    verb(
        "device",
        "add",
        "Format a device of a data server and add it to a pool",
        &[
            required("sds", Kind::Object, "Its server"),
            required("path", Kind::Path, "Its path on that server: a block device, a partition or a preallocated file"),
            POOL,
            optional("name", Kind::Name, "Its name; made from the server's and the path if left out"),
        ],
        ADMINISTRATOR,
        &[E::SdsNotFound, E::StoragePoolNotFound, E::NameInUse, E::DeviceUnusable, E::TimedOut],
        |v| {
            change(Admin::AddDevice {
                name: v.text_opt("name"),
                sds: v.object("sds"),
                storage_pool: v.object_opt("storage-pool"),
                path: v.text("path"),
            })
        },
    ),
    list("device", "List the devices"),
    show("device", "Show a device", &[target("object", "The device")], &[E::DeviceNotFound]),
    verb(
        "device",
        "rename",
        "Rename a device",
        &[target("device", "The device"), NEW_NAME],
        ADMINISTRATOR,
        &[E::DeviceNotFound, E::NameInUse],
        |v| change(Admin::RenameDevice { device: v.object("device"), name: v.text("new-name") }),
    ),
    verb(
        "device",
        "remove",
        "Move a device's data away and remove it",
        &[target("device", "The device"), FORCE],
        ADMINISTRATOR,
        &[E::DeviceNotFound, E::TooFewFaultUnits, E::WrongState],
        |v| change(Admin::RemoveDevice { device: v.object("device"), force: v.flag("force") }),
    ),
    // Data clients.
    verb(
        "sdc",
        "add",
        "Record a data client by its GUID before it joins",
        &[
            required("guid", Kind::Guid, "The host's GUID: see `drv_cfg --query_guid` there"),
            optional("name", Kind::Name, "Its name"),
        ],
        ADMINISTRATOR,
        &[E::NameInUse],
        |v| change(Admin::AddSdc { guid: v.guid("guid")?, name: v.text_opt("name") }),
    ),
    list("sdc", "List the data clients"),
    show("sdc", "Show a data client", &[target("object", "The client, by id, name or GUID")], &[E::SdcNotFound]),
    verb(
        "sdc",
        "rename",
        "Rename a data client",
        &[target("sdc", "The client"), NEW_NAME],
        CONFIGURE,
        &[E::SdcNotFound, E::NameInUse],
        |v| change(Admin::RenameSdc { sdc: v.object("sdc"), name: v.text("new-name") }),
    ),
    verb(
        "sdc",
        "remove",
        "Forget a data client without mappings",
        &[target("sdc", "The client")],
        ADMINISTRATOR,
        &[E::SdcNotFound, E::SdcHasMappings],
        |v| change(Admin::RemoveSdc { sdc: v.object("sdc") }),
    ),
    // Volumes.
    Verb {
        aliases: &["create"],
        ..verb(
            "volume",
            "add",
            "Make a volume; space is taken as it is written",
            &[NAME, required("size", Kind::Size, "Its size, such as 100GiB; rounded up to 1 MiB"), POOL],
            CONFIGURE,
            &[E::VolumeNameInUse, E::StoragePoolNotFound, E::SizeIllegal, E::VolumeTooLarge, E::TooFewFaultUnits],
            |v| {
                let size_bytes = v.size("size")?;
                change(Admin::AddVolume {
                    name: v.text("name"),
                    storage_pool: v.object_opt("storage-pool"),
                    size_bytes,
                    labels: BTreeMap::new(),
                })
            },
        )
    },
    list("volume", "List the volumes"),
    show("volume", "Show a volume", &[target("object", "The volume")], &[E::VolumeNotFound]),
    verb(
        "volume",
        "rename",
        "Rename a volume",
        &[target("volume", "The volume"), NEW_NAME],
        CONFIGURE,
        &[E::VolumeNotFound, E::VolumeNameInUse],
        |v| change(Admin::RenameVolume { volume: v.object("volume"), name: v.text("new-name") }),
    ),
    verb(
        "volume",
        "resize",
        "Make a volume larger, also while it is in use",
        &[target("volume", "The volume"), required("size", Kind::Size, "The new size; it can only grow")],
        CONFIGURE,
        &[E::VolumeNotFound, E::SizeCanOnlyGrow, E::VolumeTooLarge],
        |v| change(Admin::ResizeVolume { volume: v.object("volume"), size_bytes: v.size("size")? }),
    ),
    verb(
        "volume",
        "label",
        "Note something of a volume, such as what it is for; the plugin notes what it made there",
        &[
            target("volume", "The volume"),
            required("key", Kind::Name, "What is noted: letters, digits and . _ -, at most 63"),
            optional("value", Kind::Name, "The note; without it the label is taken away"),
        ],
        CONFIGURE,
        &[E::VolumeNotFound, E::TooMany],
        |v| change(Admin::LabelVolume { volume: v.object("volume"), key: v.text("key"), value: v.text("value") }),
    ),
    Verb {
        aliases: &["delete"],
        ..verb(
            "volume",
            "remove",
            "Remove an unmapped volume and its data",
            &[target("volume", "The volume")],
            CONFIGURE,
            &[E::VolumeNotFound, E::VolumeMapped],
            |v| change(Admin::RemoveVolume { volume: v.object("volume") }),
        )
    },
    verb(
        "volume",
        "map",
        "Let a client use a volume",
        &[
            target("volume", "The volume"),
            required("sdc", Kind::Object, "The client, by id, name or GUID"),
            optional("access", Kind::Choice(&["read-write", "read-only"]), "What it may do; default read-write"),
            IOPS,
            BANDWIDTH,
            optional("allow-multiple", Kind::Flag, "Map it although another client has it"),
        ],
        CONFIGURE,
        &[E::VolumeNotFound, E::SdcNotFound, E::AlreadyMapped, E::MappedElsewhere],
        |v| {
            let access = if v.text("access") == "read-only" { AccessMode::ReadOnly } else { AccessMode::ReadWrite };
            change(Admin::MapVolume {
                volume: v.object("volume"),
                sdc: v.object("sdc"),
                access,
                limits: limits(v)?,
                allow_multiple: v.flag("allow-multiple"),
            })
        },
    ),
    verb(
        "volume",
        "unmap",
        "Take a volume away from a client, or from all; when this returns nothing of the client is written any more",
        &[target("volume", "The volume"), optional("sdc", Kind::Object, "The client; all of them if left out")],
        CONFIGURE,
        &[E::VolumeNotFound, E::SdcNotFound, E::NotMapped, E::NotFenced],
        |v| change(Admin::UnmapVolume { volume: v.object("volume"), sdc: v.object_opt("sdc") }),
    ),
    verb(
        "volume",
        "limit",
        "Limit what a client may ask of a volume",
        &[target("volume", "The volume"), required("sdc", Kind::Object, "The client"), IOPS, BANDWIDTH],
        CONFIGURE,
        &[E::VolumeNotFound, E::SdcNotFound, E::NotMapped],
        |v| change(Admin::SetMappingLimits { volume: v.object("volume"), sdc: v.object("sdc"), limits: limits(v)? }),
    ),
    // Accounts.
    verb(
        "user",
        "add",
        "Add an account; asks for its password",
        &[
            NAME,
            required(
                "role",
                Kind::Choice(&["monitor", "configure", "administrator", "security", "superuser"]),
                "What it may do: each includes the ones before, but security manages accounts only",
            ),
        ],
        SECURITY,
        &[E::NameInUse],
        |v| {
            let role = match v.text("role").as_str() {
                "configure" => CONFIGURE,
                "administrator" => ADMINISTRATOR,
                "security" => SECURITY,
                "superuser" => UserRole::SuperUser,
                _ => MONITOR,
            };
            Ok(Call::Account(AccountChange::Add { name: v.text("name"), role }))
        },
    ),
    verb("user", "list", "List the accounts", &[], SECURITY, &[], |_| Ok(Call::List)),
    verb(
        "user",
        "set-password",
        "Change a password; asks for the new one",
        &[target("user", "The account")],
        SECURITY,
        &[E::UserNotFound],
        |v| Ok(Call::Account(AccountChange::SetPassword { user: v.object("user") })),
    ),
    verb(
        "user",
        "remove",
        "Remove an account",
        &[target("user", "The account")],
        SECURITY,
        &[E::UserNotFound, E::WrongState],
        |v| change(Admin::RemoveUser { user: v.object("user") }),
    ),
];
