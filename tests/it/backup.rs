//! A broker is lost and comes back out of its backups: values open again, what was revoked after the
//! backup stays revoked, join tokens are void, and the log goes on where it stood.

use doorward::app::Stage;

use crate::journey::program;

/// Puts a row in force under which this one operator takes the keys too.
fn keys_may_be_taken(stage: &Stage) {
    let dir = stage.broker_dir().join("policies");
    let file = dir.join("policy.csv");
    let mut rows = std::fs::read_to_string(&file).unwrap();
    let you = "spiffe://dev.doorward/doorward/operator/you";
    rows.push_str(&format!("\np, keys-backup, {you}, backup/keys, take, any, -, -, allow\n"));
    std::fs::write(&file, rows).unwrap();
    stage.operator_must(&["policy", "activate", &dir.display().to_string()], None).unwrap();
}

/// Data and keys together open everything, so the keys are an object of their own.
#[test]
fn keys_are_taken_only_under_a_row_that_says_so() {
    let stage = Stage::with_program(program(), None).unwrap();
    let path = |name: &str| stage.dir().join(name).display().to_string();
    let private = path("private.key");
    let made = stage.operator_must(&["backup", &private, "--new-recipient"], None).unwrap().json();
    let recipient = made["recipient"].as_str().unwrap();
    let take = |data: &str, keys: &str| {
        stage.operator(&["backup", data, "--keys", keys, "--recipient", recipient], None).unwrap()
    };
    stage.operator_must(&["backup", &path("alone.backup")], None).unwrap();
    let ran = take(&path("data-1"), &path("keys-1"));
    assert_eq!(ran.code, 3, "{ran:?}");
    for file in ["data-1", "keys-1"] {
        assert!(!stage.dir().join(file).exists(), "{file}: nothing is left behind");
    }
    keys_may_be_taken(&stage);
    let ran = take(&path("data-2"), &path("keys-2"));
    assert_eq!(ran.code, 0, "{ran:?}");
    let whole = std::fs::read(path("data-2")).unwrap();
    for (data, keys) in [("data-2", "keys-3"), ("data-3", "keys-2"), ("data-3", "none/keys-3")] {
        let ran = take(&path(data), &path(keys));
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(!stage.dir().join("data-3").exists() && !stage.dir().join("keys-3").exists());
    }
    assert_eq!(std::fs::read(path("data-2")).unwrap(), whole, "what was there is there");
}

#[test]
fn a_restored_broker_forgets_no_revocation() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    let path = |name: &str| stage.dir().join(name).display().to_string();
    let (data, keys, private) = (path("data.backup"), path("keys.backup"), path("private.key"));
    let (restored, lost) = (path("restored"), path("lost"));
    let second = path("second");
    let broker = path("broker");
    keys_may_be_taken(&stage);
    stage.operator_must(&["put", "shop/db/password"], Some(b"kept")).unwrap();
    let made = stage.operator_must(&["backup", &private, "--new-recipient"], None).unwrap().json();
    let recipient = made["recipient"].as_str().unwrap();

    let token = stage.operator_must(&["operator", "add", "second"], None).unwrap().json();
    let token = token["token"].as_str().unwrap().as_bytes().to_vec();
    let login = stage.run(&["login", "-", "--identity", &second], Some(&token)).unwrap();
    assert_eq!(login.code, 0, "{login:?}");
    let void = stage.operator_must(&["token", "create"], None).unwrap().json();
    let args = ["backup", &data, "--keys", &keys, "--recipient", recipient];
    stage.operator_must(&args, None).unwrap();
    // After the backup was taken:
    stage.operator_must(&["operator", "remove", "second"], None).unwrap();
    stage.stop("broker");

    std::fs::rename(&broker, &lost).unwrap();
    let log = format!("{lost}/log");
    #[rustfmt::skip]
    let args = [
        "restore", &data, "--keys", &keys, "--recipient-key", &private, "--to", &restored,
        "--log", &log,
    ];
    let ran = stage.run(&args, None).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    std::fs::rename(&restored, &broker).unwrap();
    stage.start_broker().unwrap();

    let list = stage.operator_must(&["list", "shop"], None).unwrap().json();
    assert_eq!(list["name"], "shop/db/password");
    let ran = stage.run(&["--identity", &second, "whoami"], None).unwrap();
    assert_ne!(ran.code, 0, "revoked after the backup, and still: {ran:?}");
    let token = void["token"].as_str().unwrap();
    let agent = stage.dir().join("late-agent").display().to_string();
    let ran = stage.run(&["agent", "--dir", &agent, "join", "-"], Some(token.as_bytes())).unwrap();
    assert_ne!(ran.code, 0, "tokens are void after a restore: {ran:?}");
    stage.stop("broker");
    let ran = stage.run(&["log", "verify", &format!("{broker}/log")], None).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn a_backup_of_keys_opens_for_its_recipient_only() {
    let stage = Stage::with_program(program(), None).unwrap();
    let path = |name: &str| stage.dir().join(name).display().to_string();
    let (data, keys, to) = (path("data.backup"), path("keys.backup"), path("restored"));
    let (private, other) = (path("private.key"), path("other.key"));
    keys_may_be_taken(&stage);
    stage.operator_must(&["put", "shop/db/password"], Some(b"kept")).unwrap();
    let made = stage.operator_must(&["backup", &private, "--new-recipient"], None).unwrap().json();
    stage.operator_must(&["backup", &other, "--new-recipient"], None).unwrap();
    let recipient = made["recipient"].as_str().unwrap();
    let args = ["backup", &data, "--keys", &keys, "--recipient", recipient];
    stage.operator_must(&args, None).unwrap();
    let log = stage.broker_dir().join("log").display().to_string();
    for key in [&other, &data] {
        #[rustfmt::skip]
        let args = [
            "restore", &data, "--keys", &keys, "--recipient-key", key, "--to", &to, "--log", &log,
        ];
        let ran = stage.run(&args, None).unwrap();
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(!stage.dir().join("restored").exists(), "nothing is left behind");
    }
}
