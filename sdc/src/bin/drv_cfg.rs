//! `drv_cfg`: what ScaleIO's clients call on a host to learn who it is and what it has. The output is theirs; see
//! `docs/scli.md`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use sdc_api::{LocalAnswer, LocalRequest, LocalStatus, client};

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("drv_cfg: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(request: &LocalRequest) -> anyhow::Result<LocalAnswer> {
    let socket =
        std::env::var_os("ASHLAR_SDC_SOCKET").map_or_else(|| PathBuf::from(sdc_api::SOCKET_DEFAULT), PathBuf::from);
    client::ask(&socket, request, Duration::from_secs(30)).with_context(|| {
        format!("cannot reach the data client at {}: start sdc, or set ASHLAR_SDC_SOCKET", socket.display())
    })
}

fn status() -> anyhow::Result<LocalStatus> {
    match ask(&LocalRequest::Status)? {
        LocalAnswer::Status(status) => Ok(*status),
        other => bail!("unexpected answer: {other:?}"),
    }
}

fn run(arguments: &[String]) -> anyhow::Result<String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        ["--query_guid"] => format!("{}\n", status()?.guid),
        ["--query_mdms" | "--query_mdm"] => query_mdms(&status()?),
        ["--query_vols"] => query_vols(&status()?),
        ["--query_version"] => format!("Ashlar {}\n", env!("CARGO_PKG_VERSION")),
        ["--rescan"] => match ask(&LocalRequest::Rescan)? {
            LocalAnswer::Done => String::new(),
            other => bail!("unexpected answer: {other:?}"),
        },
        ["--add_mdm" | "--mod_mdm_ip", ..] => bail!(
            "the metadata managers are known from joining, and followed as they change: join a system with 'sdc join'"
        ),
        _ => bail!("give one of --query_guid, --query_mdms, --query_vols, --query_version, --rescan"),
    })
}

fn query_mdms(status: &LocalStatus) -> String {
    let mut text = format!("Retrieved {} mdm(s)\n", status.systems.len());
    for system in &status.systems {
        let host = |address: &String| address.rsplit_once(':').map_or(address.clone(), |(host, _)| host.to_owned());
        let ips: Vec<String> =
            system.mdms.iter().enumerate().map(|(index, ip)| format!("[{index}]-{}", host(ip))).collect();
        text.push_str(&format!(
            "MDM-ID {} SDC ID {} INSTALLATION ID {} IPs {}\n",
            system.system,
            system.sdc,
            system.system,
            ips.join(" ")
        ));
    }
    text
}

fn query_vols(status: &LocalStatus) -> String {
    let mut text = format!("Retrieved {} volume(s)\n", status.volumes.len());
    for volume in &status.volumes {
        text.push_str(&format!("VOL-ID {} MDM-ID {}\n", volume.volume, volume.system));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_api::ids::{Guid, SdcId, SystemId};
    use sdc_api::LocalSystem;

    #[test]
    fn the_systems_are_printed_as_scaleios_clients_parse_them() {
        let system = LocalSystem {
            system: SystemId(0x14db_bf56_1752_3654),
            sdc: SdcId(0xd0f3_3bd7_0000_0004),
            mdms: vec!["10.0.0.1:6611".to_owned(), "10.0.0.2:6611".to_owned()],
            connected: true,
        };
        let status =
            LocalStatus { guid: Guid([0; 16]), systems: vec![system], volumes: vec![], version: String::new() };
        assert_eq!(
            query_mdms(&status),
            "Retrieved 1 mdm(s)\nMDM-ID 14dbbf5617523654 SDC ID d0f33bd700000004 INSTALLATION ID 14dbbf5617523654 IPs [0]-10.0.0.1 [1]-10.0.0.2\n"
        );
        assert_eq!(query_vols(&status), "Retrieved 0 volume(s)\n");
    }
}
