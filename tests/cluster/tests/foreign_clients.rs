//! Other people's clients read what they wrote, also while a server is killed.

use cluster::runs::interop;

#[test]
fn nbdcopy_qemu_img_and_fio_read_what_they_wrote() {
    let outcome = interop::run(&interop::SHORT).unwrap();
    assert_eq!(outcome.kills, 5);
}
