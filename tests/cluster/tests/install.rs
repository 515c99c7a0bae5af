//! The installation guide is carried out on three hosts, block by block, as it is written.

use std::time::Duration;

use cluster::hosts::Hosts;
use cluster::{document, programs, shell};

#[test]
fn the_installation_guide_ends_with_a_mounted_volume() {
    let guide = std::fs::read_to_string(programs::root().join("docs").join("install.md")).unwrap();
    let steps = document::steps(&guide).unwrap();
    assert!(steps.len() > 10, "the guide has only {} steps", steps.len());
    let addresses = [("host1", "10.0.0.1"), ("host2", "10.0.0.2"), ("host3", "10.0.0.3")];
    let hosts = Hosts::create(&addresses, &programs::folder().unwrap().canonicalize().unwrap()).unwrap();
    for step in &steps {
        if let Err(error) = hosts.carry_out(step) {
            hosts.complain();
            panic!("docs/install.md: {error:#}");
        }
    }
    // What the guide took away is gone: nothing of it is left on this machine.
    let device = std::path::Path::new("/dev/ashlar/data");
    let gone = shell::wait_until("the block device is gone", Duration::from_secs(10), || Ok(!device.exists()));
    if let Err(error) = gone {
        hosts.complain();
        panic!("{error:#}");
    }
}

#[test]
fn hosts_reach_each_other_and_have_folders_of_their_own() {
    let programs = tempfile::tempdir().unwrap();
    let hosts = Hosts::create(&[("host1", "10.0.0.1"), ("host2", "10.0.0.2")], programs.path()).unwrap();
    hosts.type_on("host1", "mkdir /etc/ashlar; echo one > /etc/ashlar/file; mkdir /var/lib/ashlar/mdm").unwrap();
    assert!(hosts.type_on("host2", "cat /etc/ashlar/file").is_err(), "the folder of another host");
    assert!(!std::path::Path::new("/etc/ashlar/file").exists(), "the folder of this machine");
    hosts.type_on("host2", "mkdir -p /etc/ashlar; [ -d /var/lib/ashlar ] && [ ! -d /var/lib/ashlar/mdm ]").unwrap();
    hosts.type_on("host1", "scp /etc/ashlar/file host2:/etc/ashlar/").unwrap();
    assert_eq!(hosts.type_on("host2", "cat /etc/ashlar/file").unwrap(), "one\n");
    let unit = "[Service]\nExecStart=/usr/bin/sleep 1000\n";
    hosts.type_on("host1", &format!("printf '{unit}' > /etc/systemd/system/x.service")).unwrap();
    hosts.type_on("host1", "systemctl daemon-reload; systemctl enable --now x; kill -0 $(cat /run/host/pids)").unwrap();
    let script = "exec 3<>/dev/tcp/10.0.0.1/1";
    let words = hosts.type_on("host2", script).unwrap_err().to_string();
    assert!(words.contains("refused"), "the other host answers, though nobody listens: {words}");
}
