//! The rules over this tree, and for each a small bad example that shows it fires.

use std::path::Path;
use std::sync::OnceLock;

use tidy::manifest::Workspace;
use tidy::modules::{Source, sources};
use tidy::rules::{code, layers, layout, links, members, purity, readme, text, unsafety};
use tidy::tree::Tree;
use tidy::violation::Violation;

/// This tree, read once.
fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let tree = Tree::read(&root).expect("the tree can be read");
        assert!(tree.files.contains_key("Cargo.toml"), "{} is not the root of the tree", root.display());
        tree
    })
}

type SourceRule = fn(&[&Source<'_>]) -> Vec<Violation>;

fn of_sources(tree: &Tree, rule: SourceRule) -> Vec<Violation> {
    let workspace = Workspace::of(tree);
    let sources = sources(tree, &workspace);
    rule(&sources.values().collect::<Vec<_>>())
}

#[track_caller]
fn none(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(lines.is_empty(), "{} violations:\n{}", lines.len(), lines.join("\n"));
}

/// The rule fires on the example: as often, and in these places.
#[track_caller]
fn fires(violations: &[Violation], places: &[(&str, usize)]) {
    let found: Vec<(&str, usize)> = violations.iter().map(|found| (found.file.as_str(), found.line)).collect();
    assert_eq!(found, places, "{violations:#?}");
    for violation in violations {
        assert!(!violation.what.is_empty() && !violation.remedy.is_empty(), "{violation}");
    }
}

mod tree_keeps_its_rules {
    use super::*;

    #[test]
    fn pure_crates_depend_on_no_runtime() {
        none(&purity::manifests(&Workspace::of(tree())));
    }

    #[test]
    fn pure_crates_name_no_clock_thread_file_or_unordered_map() {
        none(&of_sources(tree(), |sources| purity::sources(sources.iter().copied())));
    }

    #[test]
    fn dependencies_point_one_way() {
        none(&layers::direction(&Workspace::of(tree())));
    }

    #[test]
    fn members_inherit_from_the_workspace() {
        none(&members::inheritance(&Workspace::of(tree())));
    }

    #[test]
    fn nothing_unwraps_outside_tests() {
        none(&of_sources(tree(), |sources| code::unwraps(sources.iter().copied())));
    }

    #[test]
    fn unsafe_stands_in_its_places_with_its_reason() {
        none(&of_sources(tree(), |sources| unsafety::reasons(sources.iter().copied())));
    }

    #[test]
    fn names_are_imported_one_by_one() {
        none(&of_sources(tree(), |sources| code::globs(sources.iter().copied())));
    }

    #[test]
    fn no_unfinished_macro_is_left() {
        none(&of_sources(tree(), |sources| code::leftovers(sources.iter().copied())));
    }

    #[test]
    fn no_marker_of_unfinished_work_is_left() {
        none(&text::markers(tree()));
    }

    #[test]
    fn sources_are_short_enough_for_one_concept() {
        none(&of_sources(tree(), |sources| code::lengths(sources.iter().copied())));
    }

    #[test]
    fn sources_say_why_they_exist() {
        none(&of_sources(tree(), |sources| code::introductions(sources.iter().copied())));
    }

    #[test]
    fn every_source_belongs_to_a_crate() {
        none(&of_sources(tree(), |sources| code::dead_files(sources.iter().copied())));
    }

    #[test]
    fn links_in_documents_resolve() {
        none(&links::dangling(tree()));
    }

    #[test]
    fn top_level_holds_the_product_only() {
        none(&layout::top_level(tree()));
    }

    #[test]
    fn integration_tests_have_names_of_their_own() {
        none(&layout::test_names(tree()));
    }

    #[test]
    fn text_files_end_cleanly() {
        none(&text::blanks(tree()));
    }

    #[test]
    fn no_file_names_a_path_of_one_machine() {
        none(&text::machine_paths(tree()));
    }

    #[test]
    fn readme_names_commands_that_exist() {
        none(&readme::commands(tree()));
    }
}

mod each_rule_can_fire {
    use super::*;

    /// A member that breaks no rule of members.
    const MEMBER: &str = "version.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n\
        license.workspace = true\npublish.workspace = true\n[lints]\nworkspace = true\n";
    const ROOT: &str = "[workspace]\nmembers = [\"mdm/core\", \"mdm/api\", \"sds/api\"]\n\
        [workspace.dependencies]\nmdm-api = { path = \"mdm/api\" }\ntokio = \"1\"\nclock = { package = \"time\", version = \"0.3\" }\n";

    fn package(name: &str, rest: &str) -> String {
        format!("[package]\nname = \"{name}\"\n{MEMBER}{rest}")
    }

    #[test]
    fn runtime_in_a_pure_manifest() {
        let core = package(
            "mdm-core",
            "[dependencies]\ntokio = { workspace = true }\nclock = { workspace = true }\n\
             mdm-api = { workspace = true, features = [\"client\"] }\nsds-disk = { workspace = true }\n\
             [target.'cfg(unix)'.dependencies]\nlibc = \"1\"\n[dev-dependencies]\nrand = \"1\"\n",
        );
        let api = package(
            "mdm-api",
            "[features]\ndefault = [\"client\"]\n[dependencies]\nmio = { version = \"1\", optional = true }\n",
        );
        let tree = Tree::of(&[("Cargo.toml", ROOT), ("mdm/core/Cargo.toml", &core), ("mdm/api/Cargo.toml", &api)]);
        let mut found = purity::manifests(&Workspace::of(&tree));
        found.sort();
        let core = "mdm/core/Cargo.toml";
        fires(&found, &[("mdm/api/Cargo.toml", 0), (core, 11), (core, 12), (core, 13), (core, 14), (core, 16)]);
    }

    #[test]
    fn outside_world_in_pure_code() {
        let core = package("mdm-core", "");
        let api = package("mdm-api", "");
        let source = "//! Core.\nuse std::{collections::{BTreeMap, HashMap}, fs};\nuse std::time::{self, Duration};\n\
            fn a() { time::Instant::now(); }\nfn b() { std::thread::yield_now(); }\n// HashSet in a comment\n\
            #[cfg(test)]\nmod tests { use std::net::TcpStream; }\nfn c() -> std::net::IpAddr { x }\n";
        let library =
            "//! Api.\n#[cfg(feature = \"client\")]\nmod client;\n#[cfg(not(feature = \"client\"))]\nmod other;\n";
        let tree = Tree::of(&[
            ("mdm/core/Cargo.toml", &core),
            ("mdm/core/src/lib.rs", source),
            ("mdm/api/Cargo.toml", &api),
            ("mdm/api/src/lib.rs", library),
            ("mdm/api/src/client.rs", "//! Client.\nuse tokio::net::TcpStream;\n"),
            ("mdm/api/src/other.rs", "//! Other.\nuse std::time::SystemTime;\n"),
        ]);
        let found = of_sources(&tree, |sources| purity::sources(sources.iter().copied()));
        let core = "mdm/core/src/lib.rs";
        fires(&found, &[("mdm/api/src/other.rs", 2), (core, 2), (core, 2), (core, 4), (core, 5), (core, 9)]);
    }

    #[test]
    fn dependency_against_the_direction() {
        let dependency = |name: &str| format!("[dependencies]\n{name} = {{ workspace = true }}\n");
        let tree = Tree::of(&[
            ("mdm/api/Cargo.toml", &package("mdm-api", &dependency("mdm-core"))),
            ("mdm/core/Cargo.toml", &package("mdm-core", &dependency("raft"))),
            ("sds/replica/Cargo.toml", &package("sds-replica", &dependency("sds-store"))),
            ("sds/store/Cargo.toml", &package("sds-store", "[dev-dependencies]\nsds-store = { path = \".\" }\n")),
            ("sds/misplaced/Cargo.toml", &package("sds-api", "")),
            ("sds/common/Cargo.toml", &package("sds-common", "")),
            ("tests/sim/Cargo.toml", &package("sim", &dependency("sds-store"))),
        ]);
        let found = layers::direction(&Workspace::of(&tree));
        let common = "sds/common/Cargo.toml";
        fires(
            &found,
            &[
                ("mdm/api/Cargo.toml", 11),
                ("mdm/core/Cargo.toml", 11),
                (common, 0),
                (common, 0),
                ("sds/misplaced/Cargo.toml", 0),
                ("sds/replica/Cargo.toml", 11),
            ],
        );
    }

    #[test]
    fn member_that_goes_its_own_way() {
        let own = "[package]\nname = \"mdm-core\"\nversion = \"1.0.0\"\nedition = \"2021\"\nrust-version.workspace = true\n\
            license.workspace = true\npublish.workspace = true\n[dependencies]\nbytes = \"1\"\n";
        let tree = Tree::of(&[
            ("Cargo.toml", ROOT),
            ("mdm/api/Cargo.toml", &package("mdm-api", "")),
            ("mdm/core/Cargo.toml", own),
            ("mdm/extra/Cargo.toml", &package("mdm-extra", "")),
            ("mdm/broken/Cargo.toml", "[package"),
        ]);
        let found = members::inheritance(&Workspace::of(&tree));
        let core = "mdm/core/Cargo.toml";
        let extra = "mdm/extra/Cargo.toml";
        let places =
            [("mdm/broken/Cargo.toml", 0), ("Cargo.toml", 0), (core, 0), (core, 0), (core, 0), (core, 9), (extra, 0)];
        fires(&found, &places);
    }

    /// One crate with one source, and a module of tests in a file of its own.
    fn one_source(source: &str) -> Tree {
        let source = format!("//! Example.\n{source}\n#[cfg(test)]\nmod tests;\n");
        let tests = "//! Tests.\nuse super::*;\nfn t() { x().unwrap(); }\n";
        let manifest = package("mdm-core", "");
        let (source, manifest) = (source.as_str(), manifest.as_str());
        Tree::of(&[
            ("mdm/core/Cargo.toml", manifest),
            ("mdm/core/src/lib.rs", source),
            ("mdm/core/src/tests.rs", tests),
        ])
    }

    const SOURCE: &str = "mdm/core/src/lib.rs";

    #[test]
    fn unwrap_outside_tests() {
        let tree = one_source(
            "fn f() { a.unwrap(); b\n.unwrap (); c.unwrap_or(1); }\n// d.unwrap()\n#[test]\nfn t() { e.unwrap(); }",
        );
        fires(&of_sources(&tree, |sources| code::unwraps(sources.iter().copied())), &[(SOURCE, 2), (SOURCE, 3)]);
    }

    #[test]
    fn unsafe_out_of_place_or_without_reason() {
        let tree = one_source("#![allow(unsafe_code)]\nfn f() { unsafe { g() } }");
        let found = of_sources(&tree, |sources| unsafety::reasons(sources.iter().copied()));
        fires(&found, &[(SOURCE, 2), (SOURCE, 3)]);

        let engine = "//! Engine.\n// SAFETY: sound.\nunsafe impl Send for X {}\nfn f() {\n    // SAFETY: it is\n    // sound.\n    \
            let a =\n        unsafe { b() };\n    unsafe { c() };\n}\n";
        let tree = Tree::of(&[("sds/disk/Cargo.toml", &package("sds-disk", "")), ("sds/disk/src/lib.rs", engine)]);
        let found = of_sources(&tree, |sources| unsafety::reasons(sources.iter().copied()));
        fires(&found, &[("sds/disk/src/lib.rs", 9)]);
    }

    #[test]
    fn glob_import() {
        let tree = one_source(
            "pub use a::*;\nuse b::{c, d::*};\nuse super::*;\n#[cfg(test)] mod t { use e::prelude::*; use f::*; }",
        );
        let found = of_sources(&tree, |sources| code::globs(sources.iter().copied()));
        fires(&found, &[(SOURCE, 2), (SOURCE, 3), (SOURCE, 4), (SOURCE, 5)]);
    }

    #[test]
    fn unfinished_macro() {
        let tree = one_source(concat!("fn f() { to", "do!() }\n// to", "do!()\n#[test]\nfn t() { db", "g!(1); }"));
        let found = of_sources(&tree, |sources| code::leftovers(sources.iter().copied()));
        fires(&found, &[(SOURCE, 2), (SOURCE, 5)]);
    }

    #[test]
    fn marker_of_unfinished_work() {
        let source = concat!(
            "// TO",
            "DO: this\n/// Good enough for\n///   now.\nfn f() { for",
            " now in x {} }\nconst A: &str = \"Not",
            " yet\";\n",
            "// MYTO",
            "DOS, not",
            " yetis, fornow\n",
        );
        let tree =
            Tree::of(&[("a.rs", source), ("b.md", concat!("FIX", "ME\n")), ("golden/c.txt", concat!("XX", "X"))]);
        fires(&text::markers(&tree), &[("a.rs", 1), ("a.rs", 2), ("a.rs", 5), ("b.md", 1)]);
    }

    #[test]
    fn long_silent_or_dead_file() {
        let long = format!("//! Long.\n{}", "\n".repeat(code::LINES_MAX));
        let tree = Tree::of(&[
            ("mdm/core/Cargo.toml", &package("mdm-core", "")),
            ("mdm/core/src/lib.rs", "// Silent.\nmod long;\n"),
            ("mdm/core/src/long.rs", &long),
            ("mdm/core/src/lost.rs", "//! Lost.\n"),
        ]);
        let found = of_sources(&tree, |sources| code::lengths(sources.iter().copied()));
        fires(&found, &[("mdm/core/src/long.rs", 0)]);
        fires(&of_sources(&tree, |sources| code::introductions(sources.iter().copied())), &[(SOURCE, 1)]);
        let found = of_sources(&tree, |sources| code::dead_files(sources.iter().copied()));
        fires(&found, &[("mdm/core/src/lost.rs", 0)]);
    }

    #[test]
    fn link_that_leads_nowhere() {
        let page = "# Life of a write\n\n[a](b.md) [b](../README.md#what-it-is) [c](#life-of-a-write) [d](missing.md)\n\
            [e](#missing) `[f](missing.md)` [g](https://example.org) [h](/absolute.md) [i](../..)\n\
            ```\n[j](missing.md)\n# Missing\n```\n[k]: missing.md\n[l](../docs) [m](../README.md#missing)\n";
        let tree = Tree::of(&[("docs/a.md", page), ("docs/b.md", ""), ("README.md", "## What *it* is\n")]);
        let page = "docs/a.md";
        let places = [(page, 3), (page, 4), (page, 4), (page, 4), (page, 9), (page, 10)];
        fires(&links::dangling(&tree), &places);
    }

    #[test]
    fn stranger_at_the_top_level() {
        let tree = Tree::of(&[("src/lib.rs", ""), ("notes.md", ""), (".ci/run", ""), ("README.md", ""), ("mdm/a", "")]);
        fires(&layout::top_level(&tree), &[("notes.md", 0), ("src", 0)]);
    }

    #[test]
    fn two_integration_tests_of_one_name() {
        let tree = Tree::of(&[
            ("mdm/tests/life.rs", ""),
            ("sds/tests/life/main.rs", ""),
            ("sds/tests/life/other.rs", ""),
            ("sds/src/tests/life.rs", ""),
        ]);
        fires(&layout::test_names(&tree), &[("sds/tests/life/main.rs", 0)]);
    }

    #[test]
    fn blanks_tabs_and_missing_line_breaks() {
        let tree = Tree::of(&[("a.rs", "a \n\tb\n"), ("b.md", "a"), ("c.sh", "\ta\r\n"), ("golden/d.txt", "a ")]);
        fires(&text::blanks(&tree), &[("a.rs", 1), ("a.rs", 2), ("b.md", 1), ("c.sh", 1)]);
    }

    #[test]
    fn path_of_one_machine() {
        let text = concat!(
            "cd /wo",
            "rk/x\n`/ho",
            "me/me`\n$DIR/wo",
            "rk\nhttps://a.org/ho",
            "me\n/wo",
            "rker\n\"/ro",
            "ot\"\n"
        );
        let tree = Tree::of(&[("a.md", text)]);
        let mut found = text::machine_paths(&tree);
        found.sort();
        fires(&found, &[("a.md", 1), ("a.md", 2), ("a.md", 6)]);
    }

    #[test]
    fn command_that_does_not_exist() {
        let readme = "```sh\ncargo dev up --isolate --volume demo:1GiB\nsudo tests/run unit\ncargo dev fly\ncargo dev up --wings\n\
            cargo frobnicate\ntests/missing\ntests/run magic\nscli volume add --size-gib 1 # a comment\nscli volume paint\n```\n\
            ```text\ncargo nonsense\n```\n";
        let mut tree = Tree::of(&[
            ("README.md", readme),
            (".cargo/config.toml", "[alias]\ndev = \"run\"\n"),
            ("tools/dev/src/main.rs", "enum Command { Up { isolate: bool } }\nconst V: &str = \"volume\";"),
            ("tools/scli/src/main.rs", "const NOUN: &str = \"volume\"; enum Verb { Add { size_gib: u64 } }"),
            ("tests/run", "unit() { cargo test; }\n"),
        ]);
        tree.executables.insert("tests/run".to_owned());
        let found = readme::commands(&tree);
        let places: Vec<(&str, usize)> = [4, 5, 6, 7, 8, 10].map(|line| ("README.md", line)).to_vec();
        fires(&found, &places);

        let silent = Tree::of(&[("README.md", "# Ashlar\n")]);
        fires(&readme::commands(&silent), &[("README.md", 0), ("README.md", 0)]);
        fires(&readme::commands(&Tree::of(&[])), &[]);
    }
}
