//! The classic commands: which there are, what they take, what they do.

use mdm_api::client::ClientError;
use mdm_api::command::{AdminCommand as Admin, CommandAnswer, ObjectRef, SystemView};
use mdm_api::limits::CLASSIC_GRANULE_BYTES;
use mdm_api::model::{AccessMode, Limits, UserRole};

use super::flags::Flags;
use super::{Failure, print};
use crate::ask;
use crate::session::{Place, Session};

/// A classic command.
pub struct Classic {
    /// Its name, without the dashes.
    pub name: &'static str,
    flags: &'static [&'static str],
    switches: &'static [&'static str],
}

const fn classic(name: &'static str, flags: &'static [&'static str], switches: &'static [&'static str]) -> Classic {
    Classic { name, flags, switches }
}

const VOLUME: [&str; 2] = ["volume_id", "volume_name"];
const SDC: [&str; 4] = ["sdc_id", "sdc_name", "sdc_guid", "sdc_ip"];
const DOMAIN: [&str; 2] = ["protection_domain_id", "protection_domain_name"];
const POOL: [&str; 2] = ["storage_pool_id", "storage_pool_name"];
const SDS: [&str; 3] = ["sds_id", "sds_name", "sds_ip"];

/// Every classic command that is understood.
pub static COMMANDS: &[Classic] = &[
    classic("login", &["username", "password"], &["approve_certificate", "accept_license"]),
    classic("logout", &[], &[]),
    classic("query_all", &[], &[]),
    classic("query_cluster", &[], &[]),
    classic("query_all_volumes", &[], &[]),
    classic("query_all_sds", &[], &[]),
    classic("query_all_sdc", &[], &[]),
    classic("query_volume", &["volume_id", "volume_name"], &[]),
    classic("query_sds", &["sds_id", "sds_name", "sds_ip"], &[]),
    classic(
        "add_volume",
        &[
            "protection_domain_id",
            "protection_domain_name",
            "storage_pool_id",
            "storage_pool_name",
            "size_gb",
            "volume_name",
        ],
        &["thin_provisioned"],
    ),
    classic("remove_volume", &["volume_id", "volume_name"], &["i_am_sure"]),
    classic("rename_volume", &["volume_id", "volume_name", "new_name"], &[]),
    classic("modify_volume_capacity", &["volume_id", "volume_name", "size_gb"], &[]),
    classic(
        "map_volume_to_sdc",
        &["volume_id", "volume_name", "sdc_id", "sdc_name", "sdc_guid", "sdc_ip"],
        &["allow_multi_map"],
    ),
    classic(
        "unmap_volume_from_sdc",
        &["volume_id", "volume_name", "sdc_id", "sdc_name", "sdc_guid", "sdc_ip"],
        &["all_sdcs", "i_am_sure"],
    ),
    classic("rename_system", &["new_name"], &[]),
    classic("add_protection_domain", &["protection_domain_name"], &[]),
    classic("add_storage_pool", &["protection_domain_id", "protection_domain_name", "storage_pool_name"], &[]),
    classic("rename_sdc", &["sdc_id", "sdc_name", "sdc_guid", "sdc_ip", "new_name"], &[]),
    classic("version", &[], &[]),
];

/// Runs a classic line.
pub async fn run(words: &[String]) -> Result<(), Failure> {
    let mut words = words.to_vec();
    let mut mdms = Vec::new();
    if let Some(at) = words.iter().position(|word| word == "--mdm_ip") {
        let list = words.get(at + 1).cloned().ok_or_else(|| Failure::Usage("--mdm_ip needs a value".to_owned()))?;
        mdms = list.split(',').map(with_port).collect();
        words.drain(at..at + 2);
    }
    let command = COMMANDS
        .iter()
        .find(|command| words.iter().any(|word| word.strip_prefix("--") == Some(command.name)))
        .ok_or_else(|| Failure::Usage("no command: see docs/scli.md for the classic spellings".to_owned()))?;
    let flags = Flags::parse(command.name, &words, command.flags, command.switches)?;
    let place = Place::of_environment(mdms);
    match command.name {
        "login" => return login(&place, &flags).await,
        "logout" => {
            place.forget().map_err(unreachable)?;
            println!("Logged out.");
            return Ok(());
        }
        "version" => {
            println!("Ashlar scli Version: {}", print::VERSION);
            return Ok(());
        }
        _ => {}
    }
    let session = place.open().map_err(|error| Failure::Refused(format!("{error:#}")))?;
    let view = ask::system_view(&session).await.map_err(failure)?;
    let text = perform(&session, &view, command.name, &flags).await?;
    crate::output::say(&text).map_err(|error| Failure::Usage(format!("cannot print: {error}")))
}

async fn login(place: &Place, flags: &Flags) -> Result<(), Failure> {
    let user = flags.need(&["username"])?;
    let password = flags.need(&["password"])?;
    let (role, system) = place.login(user, password).await.map_err(failure)?;
    let role = if role == UserRole::SuperUser { "SuperUser".to_owned() } else { format!("{role:?}") };
    println!("Logged in. User role is {role}. System ID is {system}");
    Ok(())
}

/// ScaleIO's `--mdm_ip` has no ports.
fn with_port(address: &str) -> String {
    if address.contains(':') { address.to_owned() } else { format!("{address}:6611") }
}

fn failure(error: anyhow::Error) -> Failure {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(refused)) => Failure::Refused(refused.to_string()),
        Some(ClientError::Unavailable(_)) => unreachable(error),
        None => Failure::Refused(format!("{error:#}")),
    }
}

fn unreachable(error: anyhow::Error) -> Failure {
    Failure::Unreachable(format!("{error:#}"))
}

async fn perform(session: &Session, view: &SystemView, name: &str, flags: &Flags) -> Result<String, Failure> {
    Ok(match name {
        "query_all" => print::query_all(view),
        "query_cluster" => print::query_cluster(&view.cluster),
        "query_all_volumes" => print::query_all_volumes(view),
        "query_all_sds" => print::query_all_sds(view),
        "query_all_sdc" => print::query_all_sdc(view),
        "query_volume" => {
            let wanted = flags.need(&VOLUME)?;
            let volume = view.volumes.iter().find(|v| v.name == wanted || v.id.to_string() == wanted);
            print::query_volume(view, volume.ok_or_else(|| Failure::Refused("Could not find the volume".to_owned()))?)
        }
        "query_sds" => {
            let wanted = flags.need(&SDS)?;
            let at = |address: &String| address.rsplit_once(':').is_some_and(|(host, _)| host == wanted);
            let sds =
                view.sds.iter().find(|s| s.name == wanted || s.id.to_string() == wanted || s.addresses.iter().any(at));
            print::query_sds(view, sds.ok_or_else(|| Failure::Refused("Could not find SDS".to_owned()))?)
        }
        "add_volume" => add_volume(session, flags).await?,
        "modify_volume_capacity" => modify_capacity(session, flags).await?,
        _ => change(session, view, name, flags).await?,
    })
}

/// Rounds up to 8 GiB, and the line that says so.
fn classic_size(flags: &Flags) -> Result<(u64, u64, String), Failure> {
    let text = flags.need(&["size_gb"])?;
    let gib: u64 = text.parse().map_err(|_| Failure::Usage(format!("--size_gb {text}: give a whole number of GB")))?;
    let bytes = gib.checked_mul(1 << 30).and_then(|bytes| bytes.checked_next_multiple_of(CLASSIC_GRANULE_BYTES));
    let bytes = bytes.ok_or_else(|| Failure::Usage(format!("--size_gb {text} is too large")))?;
    let rounded = bytes >> 30;
    let notice = if rounded == gib { String::new() } else { format!("Rounding up volume size to {rounded} GB\n") };
    Ok((bytes, rounded, notice))
}

async fn add_volume(session: &Session, flags: &Flags) -> Result<String, Failure> {
    let (size_bytes, gib, notice) = classic_size(flags)?;
    let command = Admin::AddVolume {
        name: flags.need(&["volume_name"])?.to_owned(),
        storage_pool: flags.any(&POOL).map(ObjectRef::from),
        size_bytes,
        labels: Default::default(),
    };
    match ask::command(session, command).await.map_err(failure)? {
        CommandAnswer::Volume { id, .. } => {
            Ok(format!("{notice}Successfully created volume of size {gib} GB. Object ID {id}\n"))
        }
        other => Err(Failure::Refused(format!("unexpected answer {other:?}"))),
    }
}

async fn modify_capacity(session: &Session, flags: &Flags) -> Result<String, Failure> {
    let (size_bytes, gib, notice) = classic_size(flags)?;
    let volume = ObjectRef::from(flags.need(&VOLUME)?);
    ask::command(session, Admin::ResizeVolume { volume, size_bytes }).await.map_err(failure)?;
    Ok(format!("{notice}Successfully modified volume size to {gib} GB\n"))
}

/// A client, which the classic spelling may also name by address.
fn client(view: &SystemView, flags: &Flags) -> Result<ObjectRef, Failure> {
    let wanted = flags.need(&SDC)?;
    if flags.get("sdc_ip") != Some(wanted) {
        return Ok(ObjectRef::from(wanted));
    }
    let host = |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    let found: Vec<_> = view.sdcs.iter().filter(|c| host(&c.sdc.address) == wanted).collect();
    match found.as_slice() {
        [one] => Ok(ObjectRef(one.sdc.id.to_string())),
        [] => Err(Failure::Refused("Could not find the SDC".to_owned())),
        _ => Err(Failure::Refused(format!("Several SDCs have the address {wanted}: name one by --sdc_guid"))),
    }
}

async fn change(session: &Session, view: &SystemView, name: &str, flags: &Flags) -> Result<String, Failure> {
    let volume = || Ok::<_, Failure>(ObjectRef::from(flags.need(&VOLUME)?));
    let new_name = || Ok::<_, Failure>(flags.need(&["new_name"])?.to_owned());
    let domain = || flags.any(&DOMAIN).map(ObjectRef::from);
    let command = match name {
        "remove_volume" => Admin::RemoveVolume { volume: volume()? },
        "rename_volume" => Admin::RenameVolume { volume: volume()?, name: new_name()? },
        "map_volume_to_sdc" => Admin::MapVolume {
            volume: volume()?,
            sdc: client(view, flags)?,
            access: AccessMode::ReadWrite,
            limits: Limits::default(),
            allow_multiple: flags.has("allow_multi_map"),
        },
        "unmap_volume_from_sdc" => {
            let sdc = if flags.has("all_sdcs") { None } else { Some(client(view, flags)?) };
            Admin::UnmapVolume { volume: volume()?, sdc }
        }
        "rename_system" => Admin::RenameSystem { name: new_name()? },
        "add_protection_domain" => {
            Admin::AddProtectionDomain { name: flags.need(&["protection_domain_name"])?.to_owned() }
        }
        "add_storage_pool" => Admin::AddStoragePool {
            name: flags.need(&["storage_pool_name"])?.to_owned(),
            protection_domain: domain(),
            copies: 2,
            min_isr: 0,
            pg_count: 0,
        },
        "rename_sdc" => Admin::RenameSdc { sdc: client(view, flags)?, name: new_name()? },
        other => return Err(Failure::Usage(format!("--{other} cannot be used here"))),
    };
    let removed = volume().ok().and_then(|wanted| {
        view.volumes.iter().find(|v| v.name == wanted.0 || v.id.to_string() == wanted.0).map(|v| v.id)
    });
    let answer = ask::command(session, command).await.map_err(failure)?;
    Ok(match (name, answer) {
        (_, CommandAnswer::Mapping { volume, sdc, .. }) => {
            format!("Successfully mapped volume with ID {volume} to SDC with ID {sdc}.\n")
        }
        (_, CommandAnswer::Unmapping { volume, sdcs, .. }) => sdcs
            .iter()
            .map(|sdc| format!("Successfully un-mapped volume with ID {volume} from SDC with ID {sdc}.\n"))
            .collect(),
        ("remove_volume", _) => match removed {
            Some(id) => format!("Successfully removed volume ID {id}\n"),
            None => "Successfully removed volume\n".to_owned(),
        },
        ("rename_system", _) => {
            format!("Successfully renamed system to {}\n", flags.get("new_name").unwrap_or_default())
        }
        ("add_protection_domain", CommandAnswer::Object { id }) => {
            format!("Successfully created protection domain. Object ID {id:016x}\n")
        }
        ("add_storage_pool", CommandAnswer::Object { id }) => {
            format!("Successfully created a storage pool. Object ID {id:016x}\n")
        }
        (_, _) => format!("Successfully completed {name}\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_up_to_8_gib_and_say_so() {
        let size = |gb: &str| {
            let words = ["--add_volume", "--size_gb", gb].map(str::to_owned);
            classic_size(&Flags::parse("add_volume", &words, &["size_gb"], &[]).ok()?).ok()
        };
        assert_eq!(size("8"), Some((8 << 30, 8, String::new())));
        assert_eq!(size("49"), Some((56 << 30, 56, "Rounding up volume size to 56 GB\n".to_owned())));
        assert_eq!(size("x"), None);
        assert_eq!(size("99999999999999"), None);
    }
}
