//! Scripted runs: every story in `stories/` ends as its file says. `UPDATE=1` writes what happened into the files.

use std::path::Path;

use sim::story::play;

#[test]
fn stories_end_as_they_are_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("stories");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("there is a folder of stories")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "stories are missing");
    let mut wrong = Vec::new();
    for path in files {
        let told = std::fs::read_to_string(&path).expect("a story can be read");
        match play(&told, std::env::var_os("TRACE").is_some()) {
            Ok(happened) if happened == told => {}
            Ok(happened) if std::env::var_os("UPDATE").is_some() => {
                std::fs::write(&path, happened).expect("a story can be written");
            }
            Ok(happened) => {
                let line = told.lines().zip(happened.lines()).position(|(a, b)| a != b).unwrap_or_default();
                let at = |text: &str| text.lines().nth(line).unwrap_or_default().to_owned();
                let (told, happened) = (at(&told), at(&happened));
                wrong.push(format!("{}:{}: told '{told}', happened '{happened}'", path.display(), line + 1));
            }
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
