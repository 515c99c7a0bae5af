//! The installation guide is carried out on three hosts, block by block, as it is written.

use cluster::document;
use cluster::hosts::Hosts;
use cluster::programs;
use cluster::turn::Turn;

#[test]
fn the_installation_guide_ends_with_a_mounted_volume() {
    let _turn = Turn::take().unwrap();
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
}
