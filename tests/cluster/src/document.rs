//! The installation guide as something that can be carried out.
//!
//! A fenced block whose first line reads ```` ```sh host1 ```` is typed on `host1`, ```` ```sh every-host ```` on each
//! host in turn, and ```` ```toml host1 /etc/ashlar/mdm.toml ```` is a file there. Blocks that name no host are for people:
//! getting the programs.

use anyhow::{Context, bail};

/// A step of the guide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The host, or `every-host`.
    pub host: String,
    /// The line of the document, from 1.
    pub line: usize,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Type this.
    Type(String),
    /// Make a file.
    Write {
        /// Its path.
        path: String,
        /// What is in it.
        text: String,
    },
}

/// The name that means all hosts.
pub const EVERY_HOST: &str = "every-host";

/// The steps of a document, in order.
pub fn steps(text: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(words) = line.strip_prefix("```") else { continue };
        let mut body = String::new();
        loop {
            let (_, line) = lines.next().with_context(|| format!("the block of line {} has no end", index + 1))?;
            if line == "```" {
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        let words: Vec<&str> = words.split_whitespace().collect();
        let action = match words.as_slice() {
            [] | [_] => continue,
            ["sh", _] => Action::Type(body),
            ["toml" | "ini", _, path] => Action::Write { path: (*path).to_owned(), text: body },
            _ => bail!("line {}: a block is `sh HOST` or `toml HOST PATH`", index + 1),
        };
        steps.push(Step { host: words[1].to_owned(), line: index + 1, action });
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_name_their_host_and_others_are_left_to_people() {
        let text = "a\n```sh\nno\n```\n```sh host1\nx\ny\n```\n```toml every-host /etc/a.toml\nk = 1\n```\n";
        let steps = steps(text).unwrap();
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].host.as_str(), steps[0].line), ("host1", 5));
        assert_eq!(steps[0].action, Action::Type("x\ny\n".to_owned()));
        let write = Action::Write { path: "/etc/a.toml".to_owned(), text: "k = 1\n".to_owned() };
        assert_eq!((steps[1].host.as_str(), &steps[1].action), (EVERY_HOST, &write));
        assert!(super::steps("```sh host1\nx\n").is_err(), "no end");
    }
}
