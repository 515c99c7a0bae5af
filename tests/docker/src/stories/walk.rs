//! What a user does on his first day, and what Docker's own tests ask of a driver.

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::host::Host;
use crate::shell;
use crate::site::Site;

/// Writes 100 MB of files with their checksums.
const WRITE: &str = "cd /d && for i in 1 2 3 4 5; do dd if=/dev/urandom of=f$i bs=1M count=20 2>/dev/null; done && \
                     sha256sum f1 f2 f3 f4 f5 > sums && sync";
/// Compares them.
const READ: &str = "cd /d && sha256sum -c -s sums && echo same";

/// The first host.
pub fn first(site: &Site) -> anyhow::Result<&Host> {
    site.hosts.first().context("a site has hosts")
}

/// Create, look, write, remove the container, read with another, read on another host.
pub fn data_outlives_its_container(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    host.docker(&["volume", "create", "-d", "ashlar", "-o", "size=300MiB", "-o", "mode=0700", "-o", "uid=33", "db"])?;
    let listed = host.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"])?;
    ensure!(listed.lines().any(|line| line == "ashlar db"), "{listed}");
    let shown = host.inspect("db")?;
    ensure!(shown["Scope"] == "global" && shown["Driver"] == "ashlar", "{shown}");
    ensure!(shown["Status"]["size-bytes"] == 300_u64 << 20 && shown["Status"]["copies"] == 2, "{shown}");
    ensure!(
        shown["Status"]["health"] == "healthy" && shown["CreatedAt"].as_str().is_some_and(|at| at > "2020"),
        "{shown}"
    );
    host.container(&["-v", "db:/d"], WRITE)?;
    ensure!(host.container(&["-v", "db:/d"], READ)? == "same");
    let owner = host.container(&["-v", "db:/d"], "stat -c '%u %a' /d; ls -a /d")?;
    ensure!(owner.starts_with("33 700") && !owner.contains("lost+found"), "{owner}");
    let second = site.hosts.get(1).context("a site has two hosts")?;
    ensure!(second.container(&["-v", "db:/d"], READ)? == "same", "on another host");
    second.docker(&["volume", "rm", "db"])?;
    let gone = host.docker(&["volume", "ls", "--quiet"])?;
    ensure!(!gone.contains("db"), "{gone}");
    Ok(())
}

/// Wrong options are answered with the right ones; the same name with other options is refused; xfs works.
pub fn options_are_checked_and_kept(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let create = |name: &str, options: &[&str]| {
        let mut arguments = vec!["volume", "create", "-d", "ashlar"];
        options.iter().for_each(|option| arguments.extend(["-o", option]));
        arguments.push(name);
        shell::output(&mut host.docker_command(&arguments))
    };
    for (options, word) in [
        (&["sise=1GiB"][..], "mount-opts"),
        (&["size=much"], "size=much"),
        (&["fstype=ntfs"], "ext4 or xfs"),
        (&["from-snapshot=x"], "from-snapshot"),
        (&["thick=true"], "thick"),
        (&["copies=3"], "no storage pool has copies=3"),
        (&["pool=nowhere"], "pool1"),
        (&["mkfs-opts=/dev/sda"], "mkfs-opts"),
    ] {
        let output = create("wrong", options)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && words.contains(word), "{options:?}: {words}");
    }
    ensure!(create("kept", &["size=400MiB", "fstype=xfs", "mount-opts=noatime", "copies=2"])?.status.success());
    let asked = |options| host.request("/VolumeDriver.Create", &json!({"Name": "kept", "Opts": options}).to_string());
    ensure!(asked(json!({"size": "400MiB", "fstype": "xfs"}))?.1["Err"] == "");
    ensure!(asked(json!(null))?.1["Err"] == "");
    for other in
        [json!({"fstype": "ext4"}), json!({"size": "1GiB"}), json!({"read-only": "true"}), json!({"copies": "3"})]
    {
        let (_, answer) = asked(other)?;
        ensure!(answer["Err"].as_str().is_some_and(|why| why.contains("exists")), "{answer}");
    }
    let mounted = host.container(&["-v", "kept:/d"], "grep ' /d ' /proc/mounts")?;
    ensure!(mounted.contains(" xfs ") && mounted.contains("noatime"), "{mounted}");
    // Made on first use, with what the configuration says.
    let mounted = host.container(&["--volume-driver", "ashlar", "-v", "fresh:/d"], "grep ' /d ' /proc/mounts")?;
    ensure!(mounted.contains(" ext4 "), "{mounted}");
    host.docker(&["volume", "rm", "kept", "fresh"]).map(drop)
}

/// Two containers, `--volumes-from`, `docker cp`, `kill`: the volume is mounted until the last of them is gone.
pub fn every_mount_is_counted_by_its_id(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let run = |name: &str, options: &[&str]| {
        let arguments = ["run", "--detach", "--network", "none", "--name", name];
        host.docker(&[&arguments[..], options, &["bb:1", "sleep", "1000"]].concat())
    };
    let count = || Ok::<_, anyhow::Error>(host.inspect("many")?["Status"]["mounts-here"].clone());
    run("one", &["--volume-driver", "ashlar", "-v", "many:/d"])?;
    run("two", &["--volumes-from", "one"])?;
    ensure!(count()? == 2 && host.volume_mounts()?.len() == 1, "{:?}", host.volume_mounts()?);
    host.docker(&["exec", "one", "sh", "-c", "echo hi > /d/f"])?;
    ensure!(host.docker(&["exec", "two", "cat", "/d/f"])? == "hi");
    let copy = host.home().join("copied").display().to_string();
    host.docker(&["cp", "one:/d/f", &copy])?;
    ensure!(host.bash(&format!("cat {copy}"))? == "hi" && count()? == 2);
    let refused = host.docker_refused(&["volume", "rm", "many"])?;
    ensure!(refused.contains("in use"), "{refused}");
    host.docker(&["kill", "two"])?;
    host.docker(&["rm", "--force", "--volumes", "two"])?;
    ensure!(count()? == 1);
    host.docker(&["restart", "--time", "0", "one"])?;
    ensure!(count()? == 1 && host.docker(&["exec", "one", "cat", "/d/f"])? == "hi");
    host.docker(&["rm", "--force", "--volumes", "one"])?;
    ensure!(host.volume_mounts()?.is_empty());
    host.docker(&["volume", "rm", "many"]).map(drop)
}

/// Without a name, with `--rm`: nothing is left.
pub fn anonymous_volumes_come_and_go(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    host.container(&["--volume-driver", "ashlar", "-v", "/d"], "echo x > /d/f && grep -q ' /d ext4' /proc/mounts")?;
    let left = host.docker(&["volume", "ls", "--quiet", "--filter", "driver=ashlar"])?;
    ensure!(left.is_empty(), "{left}");
    // A local one is not ours.
    host.container(&["-v", "/d"], "echo x > /d/f")?;
    Ok(())
}

/// Unknown names, volumes of other uses, and what was removed elsewhere.
pub fn what_is_not_there_is_said_to_be_missing(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let refused = host.docker_refused(&["volume", "inspect", "nowhere"])?;
    ensure!(refused.to_lowercase().contains("no such volume"), "{refused}");
    // Made by hand for something else.
    ensure!(host.request("/VolumeDriver.Get", r#"{"Name":"demo"}"#)?.1["Err"] != "");
    let refused = host.docker_refused(&["volume", "create", "-d", "ashlar", "demo"])?;
    ensure!(refused.contains("not made for Docker"), "{refused}");
    host.docker(&["volume", "create", "-d", "ashlar", "-o", "size=32MiB", "out"])?;
    site.scli(&["volume", "remove", "out"])?;
    ensure!(!host.docker(&["volume", "ls", "--quiet"])?.contains("out"));
    let shown = host
        .docker(&["volume", "create", "-d", "ashlar", "-o", "size=48MiB", "out"])
        .and_then(|_| host.inspect("out"))?;
    if shown["Status"]["size-bytes"] != 48_u64 << 20 {
        bail!("made anew after it was removed elsewhere, and still the old one: {shown}");
    }
    host.docker(&["volume", "rm", "out"]).map(drop)
}
