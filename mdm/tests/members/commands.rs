//! Promises of the command line: what is wrong is said in one line, with what to do.

use std::os::unix::fs::PermissionsExt;

use crate::common::{Member, mdm, refused, text};

#[test]
fn a_system_is_created_once_and_its_secrets_are_its_owners_alone() {
    let member = Member::new("mdm1");
    let created = member.create();
    assert_eq!(created["system_id"].as_str().unwrap().len(), 16);
    assert!(created["join_token"].as_str().unwrap().starts_with("ashlar1."));
    for entry in std::fs::read_dir(member.data()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.path());
    }
    let arguments = member.create_arguments();
    let line = refused(&mdm(&arguments.each_ref().map(String::as_str)));
    assert!(line.contains("already created") && line.contains("mdm run"), "{line}");
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_what_to_do() {
    let member = Member::new("mdm1");
    let config = member.config();
    let line = refused(&mdm(&["run", "--config", "/nowhere/mdm.toml"]));
    assert!(line.contains("/nowhere/mdm.toml") && line.contains("--config"), "{line}");
    let line = refused(&mdm(&["run", "--config", &config]));
    assert!(line.contains("mdm create-system"), "{line}");
    let line = refused(&mdm(&["join", "--config", &config, "--token", "nonsense"]));
    assert!(line.contains("join token"), "{line}");
    std::fs::write(member.password_file(), "short\n").unwrap();
    let arguments = member.create_arguments();
    let line = refused(&mdm(&arguments.each_ref().map(String::as_str)));
    assert!(line.contains("too short"), "{line}");
    assert!(!member.data().join("member.toml").exists(), "nothing was created");

    let wrong = std::fs::read_to_string(&config).unwrap().replace("listen =", "lissen =");
    std::fs::write(&config, wrong).unwrap();
    let line = refused(&mdm(&["run", "--config", &config]));
    assert!(line.contains("lissen") && line.contains("the keys are"), "{line}");
}

#[test]
fn a_port_in_use_is_named() {
    let member = Member::new("mdm1");
    member.create();
    let _taken = std::net::TcpListener::bind(&member.address).unwrap();
    let line = refused(&mdm(&["run", "--config", &member.config()]));
    assert!(line.contains(&member.address) && line.contains("in use"), "{line}");
}

#[test]
fn a_log_that_was_wiped_does_not_start_under_its_old_id() {
    let member = Member::new("mdm1");
    member.create();
    std::fs::remove_dir_all(member.data().join("raft")).unwrap();
    let line = refused(&mdm(&["run", "--config", &member.config()]));
    assert!(line.contains("scli mdm remove") && line.contains("mdm join"), "{line}");
}

#[test]
fn the_manual_page_names_every_command() {
    let output = mdm(&["man"]);
    let page = text(&output.stdout);
    assert!(output.status.success());
    for word in ["create", "join", "run"] {
        assert!(page.contains(word), "{word}");
    }
}
