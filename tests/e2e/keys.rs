//! Token keys: a node that has only public ones lets in what their private halves signed, and takes new ones while it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kit::*;

const TINY: Recipe = Recipe { size: "160x96", rate: "10", seconds: 5, extra: &["-g", "20", "-b:v", "50k"] };

/// What a successful command prints, or what a failed one complains of.
fn run(arguments: &[&str]) -> Result<String, String> {
    let output = rooftop().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn keys_are_exchanged_while_a_broadcast_runs() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make("keys", TINY);
    let folder = Folder::new("keys");
    let pair = |name: &str| -> (PathBuf, PathBuf) {
        let private = folder.path().join(name);
        let made: serde_json::Value =
            serde_json::from_str(&run(&["token", "new-key", text(&private)]).unwrap()).unwrap();
        assert!(run(&["token", "new-key", text(&private)]).is_err(), "never over an old one");
        (private, made["public"].as_str().unwrap().into())
    };
    let ((first, first_public), (second, second_public)) = (pair("first"), pair("second"));
    let mut config = all_in_one(&folder.path().join("state"));
    config.insert("tokens", format!("key_files = [{first_public:?}]\n"));
    config.insert("edge.playback", format!("paths = [\"/live/*\"]\nkey_files = [{first_public:?}]\n"));
    let node = Node::start(&folder, "node", &toml(&config));
    let make = |key: &Path| run(&["token", "make", "show", "--key", text(key)]).unwrap();
    let check =
        |token: &str| run(&["token", "check", token, "--stream", "show", "--config", text(node.config())]);
    let publish = |token: &str| {
        let url = format!("rtmps://{}/live/show?token={token}", node.addr("rtmps"));
        Broadcaster::send(&clip, &url, -1)
    };

    // Whoever has the public half cannot make tokens.
    let refused = run(&["token", "make", "show", "--config", text(node.config())]).unwrap_err();
    assert!(refused.contains("it can check tokens, but not make them"), "{refused}");
    let (old, new) = (make(&first), make(&second));
    let claims: serde_json::Value = serde_json::from_str(&check(&old).unwrap()).unwrap();
    assert_eq!(claims["jti"].as_str().unwrap().len(), 16);
    assert_eq!(check(&new).unwrap_err(), "token signature does not match any key");
    assert!(!publish(&new).wait().0);
    node.logged("why=\"stream show: token signature does not match any key\"");
    let broadcast = publish(&old);
    eventually("the broadcast", || (node.metric("origin_sessions") == 1.0).then_some(()));

    // A file that is no key changes nothing; then the other pair takes the first one's place.
    let reload = |public: &Path| {
        let mut config = config.clone();
        config.insert("tokens", format!("key_files = [{public:?}]\n"));
        config.insert("edge.playback", format!("paths = [\"/live/*\"]\nkey_files = [{public:?}]\n"));
        std::fs::write(node.config(), toml(&config)).unwrap();
        assert!(Command::new("kill").args(["-HUP", &node.pid().to_string()]).status().unwrap().success());
    };
    let weak = folder.path().join("weak");
    std::fs::write(&weak, "short").unwrap();
    reload(&weak);
    node.logged("configuration not reloaded");
    node.logged("weak: a token key needs at least 32 bytes, this one has 5");
    reload(&second_public);
    node.logged("configuration reloaded");
    assert!(!node.log().contains("needs a restart"), "{}", node.log());
    assert_eq!(check(&old).unwrap_err(), "token signature does not match any key");
    assert!(check(&new).is_ok());
    assert!(!publish(&old).wait().0, "it opens nothing any more");
    // Who was let in stays.
    let before = node.metric("ingest_received_tags_total");
    eventually("media after the exchange", || {
        (node.metric("ingest_received_tags_total") > before + 50.0).then_some(())
    });
    assert_eq!(node.metric("origin_sessions"), 1.0);
    let takes_over = publish(&new);
    assert!(!broadcast.wait().0);
    node.logged("why=\"taken over by a newer session\"");
    takes_over.kill();
}
