//! What Vona is told of one connection, by its environment.

use super::*;

fn vona() -> Pod {
    let pod = Pod::new("vona");
    let password = pod.secret("default/password", "secret");
    let client = json!({"host": "redis-main", "port": 6380, "db": 3, "password": password});
    for role in ["queue", "default"] {
        pod.role(role, &client);
    }
    pod.role("redlock", &json!([client]));
    pod
}

#[test]
fn vona_reads_the_declared_variables_and_nobody_inherits_them() {
    for (name, damage) in [
        ("as it is", (|_| ()) as fn(&mut Pod)),
        ("variables in the manifest", |pod| {
            pod.env("REDIS_DEFAULT_HOST", "manifest");
            pod.env("REDIS_DEFAULT_PASSWORD", "manifest");
        }),
        ("no role default", |pod| pod.boot(|boot| boot["roles"] = json!(["redlock", "queue"]))),
        ("the right APP_NAME", |pod| pod.env("APP_NAME", "shop")),
    ] {
        let mut pod = vona();
        damage(&mut pod);
        let ended = pod.node("node24", &["../bootstrap.mjs"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{name}");
        let facts: Value = serde_json::from_str(&ended.stdout).unwrap();
        let expected = json!({
            "REDIS_DEFAULT_HOST": "redis-main", "REDIS_DEFAULT_PORT": "6380", "REDIS_DEFAULT_PASSWORD": "secret", "REDIS_DEFAULT_DB": "3", "OTHER": "image",
        });
        assert_eq!(facts["prepared"], expected, "{name}");
        assert_eq!(facts["imported"], expected, "{name}");
        assert_eq!(facts["has"], true, "{name}");
        for place in ["spread", "environ", "inherited"] {
            let seen = facts[place].to_string();
            assert!(!seen.contains("\"secret\"") && !seen.contains("=secret"), "{name}: {place}: {seen}");
        }
        assert_eq!(facts["child"], "redis-main", "{name}");
        assert_eq!(facts["assigned"], json!(["assigned", "assigned"]), "{name}");
        assert_eq!((&facts["deleted"], &facts["other"]), (&json!(true), &json!("1")), "{name}");
    }
}

#[test]
fn vona_without_a_password_does_not_keep_the_builds() {
    let pod = Pod::new("vona");
    pod.role("default", &json!({"host": "redis", "port": 6379}));
    let facts: Value = serde_json::from_str(&pod.node("node24", &["../bootstrap.mjs"]).stdout).unwrap();
    assert_eq!(facts["prepared"]["REDIS_DEFAULT_PASSWORD"], "");
    assert_eq!(facts["prepared"]["REDIS_DEFAULT_DB"], "0");
}

#[test]
fn vona_is_refused_what_its_variables_cannot_say() {
    let remedy = "let all roles share one connection of host, port, password and db in the CabloyCluster, for Vona can be told no more, or set spec.app.mergesConfig";
    let cases: [Case; 7] = [
        (
            "another host",
            |pod| pod.write("boot/queue.json", &json!({"host": "other", "port": 6380, "db": 3})),
            "<pod>/boot/queue.json: host differs from that in <pod>/boot/default.json; <remedy>",
        ),
        (
            "another password",
            |pod| {
                let other = pod.secret("other/password", "secret of another");
                pod.write("boot/queue.json", &json!({"host": "redis-main", "port": 6380, "db": 3, "password": other}));
            },
            "<pod>/boot/queue.json: password differs from that in <pod>/boot/default.json; <remedy>",
        ),
        (
            "a user",
            |pod| pod.write("boot/default.json", &json!({"host": "redis-main", "port": 6380, "username": "shop"})),
            "<pod>/boot/default.json: username cannot be said in REDIS_DEFAULT_*; <remedy>",
        ),
        (
            "sentinels",
            |pod| pod.write("boot/default.json", &json!({"sentinels": [{"host": "s", "port": 1}], "name": "m"})),
            "<pod>/boot/default.json: name cannot be said in REDIS_DEFAULT_*; <remedy>",
        ),
        (
            "several masters",
            |pod| pod.write("boot/redlock.json", &json!([{"host": "a", "port": 1}, {"host": "b", "port": 1}])),
            "<pod>/boot/redlock.json: has several masters; <remedy>",
        ),
        (
            "no secret",
            |pod| fs::remove_file(pod.path("secrets/default/password")).unwrap(),
            "<pod>/secrets/default/password: is missing; create the Secret's key that password of <pod>/boot/queue.json asks for, or name another one in the CabloyCluster",
        ),
        (
            "another app",
            |pod| pod.env("APP_NAME", "other"),
            "environment variable APP_NAME: is \"other\", but the configuration is for the app \"shop\"; make a CabloyCluster with the right spec.app.name",
        ),
    ];
    for (what, damage, message) in cases {
        let mut pod = vona();
        damage(&mut pod);
        let message = message.replace("<remedy>", remedy);
        // known by its name, …
        assert_refused(&pod, &pod.node("node24", &["../bootstrap.mjs"]), &message, what);
        // … or by what it reads
        fs::rename(pod.path("bootstrap.mjs"), pod.path("main.mjs")).unwrap();
        assert_refused(&pod, &pod.node("node24", &["../main.mjs"]), &message, what);
    }
}

/// Answers itself, until each has ended its connection, or kept it, as it should.
const SERVER: &str = r"
import fs from 'node:fs';
import http from 'node:http';
const agent = new http.Agent({ keepAlive: true });
const server = http.createServer((request, response) => response.end());
const ask = () => new Promise((resolve, reject) => {
  http.get({ host: '127.0.0.1', port: server.address().port, agent }, response => {
    response.on('end', () => resolve(response.headers.connection)).resume();
  }).on('error', reject);
});
const until = async wanted => {
  while (await ask() !== wanted) await new Promise(resolve => setTimeout(resolve, 50));
};
server.listen(0, '127.0.0.1', async () => {
  const file = `${process.env.CABLOY_STATE_DIR}/draining`;
  await until('keep-alive');
  fs.writeFileSync(file, '');
  await until('close');
  fs.unlinkSync(file);
  await until('keep-alive');
  process.exit(0);
});
";

#[test]
fn an_app_of_vona_lets_go_of_its_clients_while_its_pod_drains() {
    let mut pod = Pod::new("vona");
    pod.text("app/bootstrap.mjs", SERVER);
    fs::create_dir(pod.path("state")).unwrap();
    pod.env("CABLOY_STATE_DIR", &pod.path("state").display().to_string());
    for node in NODES {
        let ended = pod.node(node, &["bootstrap.mjs"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{node}");
    }
}
