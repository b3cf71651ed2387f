//! Every command of the documentation is run against a live node, in order, but for those below that cannot be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::etcd::Etcd;
use crate::kit::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Documents whose examples are one script each, and the story that runs it.
const SCRIPTS: [(&str, &str); 2] = [("docs/api.md", "api.rs"), ("docs/policy.md", "policy.rs")];

/// What commands begin with that are not run here, and why.
const NOT_HERE: [(&str, &str); 6] = [
    ("make run", "builds a release and stays; what it starts is what is run here"),
    ("apt install", "changes the system; packaging:: looks at what the package is made of"),
    ("systemctl ", "there is no systemd in a container; packaging:: checks the unit"),
    ("docker compose", "there is no Docker daemon; packaging:: runs what the file says as processes"),
    ("rooftop serve", "stays; the node that all others are run against is one"),
    ("gst-launch-1.0", "stays; encoders:: broadcasts with it"),
];

/// Commands that ask a node; those without `--admin` ask the one at its default address.
const ASKING: [&str; 4] = ["rooftop status", "rooftop streams", "rooftop drain", "rooftop latency"];

/// The commands of a document's sh and console blocks, comments left out, lines that go on put together.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for fence in ["```sh\n", "```console\n", "```bash\n"] {
        for block in text.split(fence).skip(1).map(|rest| rest.split("```").next().unwrap()) {
            let block = block.replace("\\\n", " ");
            let lines = block.lines().map(|line| line.split(" # ").next().unwrap_or(line).trim());
            let lines = lines.map(|line| line.strip_prefix("$ ").unwrap_or(line));
            commands
                .extend(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
        }
    }
    commands
}

fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut docs: Vec<_> = docs.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect();
    docs.sort();
    docs.insert(0, Path::new(ROOT).join("README.md"));
    docs
}

/// A machine on which all is where the documentation says, below one folder.
struct Machine<'a> {
    folder: &'a Folder,
    clip: &'a Clip,
    etcd: String,
    node: Node,
}

impl<'a> Machine<'a> {
    fn new(folder: &'a Folder, clip: &'a Clip, etcd: &str) -> Machine<'a> {
        let mut config = all_in_one(&folder.path().join("var/lib/rooftop"));
        // For the POP's file, which is another name of the same.
        fs::create_dir_all(folder.path().join("etc/rooftop")).unwrap();
        config.insert("transcode", "preset = \"ultrafast\"\n".into());
        let node = Node::start(folder, "etc/rooftop/rooftop", &toml(&config));
        fs::copy(node.config(), folder.path().join("etc/rooftop/pop.toml")).unwrap();
        Machine { folder, clip, etcd: etcd.into(), node }
    }

    /// The command with this machine's files, addresses and keys.
    fn here(&self, command: &str) -> String {
        let folder = self.folder.path().display();
        let addr = |listener: &str| self.node.addr(listener).to_string();
        let port = |listener: &str| format!("localhost:{}", self.node.addr(listener).port());
        let mut here = command
            .replace("target/release/rooftop ", "rooftop ")
            .replace("/usr/lib/rooftop/fleet-secrets", &format!("{ROOT}/packaging/fleet-secrets.sh"))
            .replace("/etc/rooftop/", &format!("{folder}/etc/rooftop/"))
            .replace("configs/all-in-one.toml", self.node.config().to_str().unwrap())
            .replace("--directory / ", &format!("--directory {folder} "))
            .replace("run/tls/ca.pem", &format!("{folder}/var/lib/rooftop/tls/ca.pem"))
            .replace("127.0.0.1:9090", &addr("admin"))
            // Plain here: a loopback address needs no certificate.
            .replace("https://origin-1.example.com:9090", &format!("http://{}", addr("admin")))
            .replace("localhost:8443", &port("https"));
        for (stream, key) in [("mine", "mine?token=…"), ("show", "show?token=...")] {
            for (host, listener) in [("localhost:1936", "rtmps"), ("HOST:1936", "rtmps")] {
                let documented = format!("{listener}://{host}/live/{key}");
                if here.contains(&documented) {
                    here = here.replace(&documented, &self.node.publish_url(listener, stream));
                }
            }
        }
        let clip = self.clip.path.display();
        here = here.replace("-i FILE ", &format!("-i {clip} ")).replace("-i input ", &format!("-i {clip} "));
        if ASKING.iter().any(|asking| here.starts_with(asking)) && !here.contains("--admin") {
            here = format!("{here} --admin {}", addr("admin"));
        }
        here
    }

    fn run(&self, command: &str) -> std::process::Output {
        let binary = Path::new(env!("CARGO_BIN_EXE_rooftop")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", command]).current_dir(self.folder.path());
        bash.env("PATH", path).env("ETCDCTL_ENDPOINTS", &self.etcd).env("ETCDCTL_API", "3");
        bash.stdin(Stdio::null()).output().unwrap()
    }
}

#[test]
fn every_documented_command_works() {
    let Some(etcd) = Etcd::start() else { return };
    let _turn = real_time(Share::Core);
    let folder = Folder::new("commands");
    let recipe =
        Recipe { size: "320x240", rate: "15", seconds: 3, extra: &["-tune", "zerolatency", "-g", "15"] };
    let clip = Clip::make("commands", recipe);
    let mut machine = Machine::new(&folder, &clip, etcd.url());
    let _broadcaster = Broadcaster::send(&clip, &machine.node.publish_url("rtmps", "demo"), -1);
    live(&machine.node, "demo");
    let (mut ran, mut left) = (0, Vec::new());
    for document in documents() {
        let name = document.strip_prefix(ROOT).unwrap().display().to_string();
        let text = fs::read_to_string(&document).unwrap();
        if let Some((_, story)) = SCRIPTS.iter().find(|(script, _)| *script == name) {
            let story = fs::read_to_string(Path::new(ROOT).join("tests/e2e").join(story)).unwrap();
            assert!(story.contains(&name), "the story that runs the examples of {name} reads another file");
            continue;
        }
        for command in commands(&text) {
            if let Some((begins, _)) = NOT_HERE.iter().find(|(begins, _)| command.starts_with(begins)) {
                left.push(*begins);
                continue;
            }
            let here = machine.here(&command);
            let output = machine.run(&here);
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(output.status.success(), "{name}: {command}\nas {here}\nsays: {said}");
            ran += 1;
            if command.starts_with("rooftop drain") {
                machine = Machine::new(&folder, &clip, etcd.url());
            }
        }
    }
    println!("{ran} commands were run, {} not", left.len());
    assert!(ran >= 15, "only {ran} commands were found");
    for (begins, _) in NOT_HERE {
        assert!(left.contains(&begins), "no document has {begins:?} any more: take it off the list");
    }
}

#[test]
fn every_alert_is_explained() {
    let alerts = fs::read_to_string(Path::new(ROOT).join("configs/prometheus/alerts.yml")).unwrap();
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 12, "{names:?}");
    let operations = fs::read_to_string(Path::new(ROOT).join("docs/operations.md")).unwrap();
    for name in &names {
        assert!(operations.contains(&format!("| `{name}` |")), "{name} is not in docs/operations.md");
    }
    let documented = operations.lines().filter_map(|line| line.strip_prefix("| `Rooftop")?.split('`').next());
    for name in documented {
        assert!(names.contains(&format!("Rooftop{name}").as_str()), "there is no alert Rooftop{name}");
    }
}
