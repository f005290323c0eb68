// The main path: a device boots with a birth certificate or a code, and an independent subscriber receives its telemetry. What the access
// list does not allow never arrives. The list follows the devices within two seconds.

package e2e

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// follows is how soon the broker has to know of a device that was added or removed.
const follows = 2 * time.Second

var telemetrySerial = regexp.MustCompile(`"certificate_serial":"([0-9a-f]+)"`)

// serials are the certificate serial numbers in the telemetry that arrived at topic.
func serials(witness *harness.Process, topic string) []string {
	var found []string
	for _, line := range outputLines(witness) {
		payload, ok := strings.CutPrefix(line, topic+" ")
		if m := telemetrySerial.FindStringSubmatch(payload); ok && m != nil && !slices.Contains(found, m[1]) {
			found = append(found, m[1])
		}
	}
	return found
}

// listed is one certificate of `cert list --json`.
type listed struct {
	Serial    string `json:"serial"`
	Device    string `json:"device"`
	Profile   string `json:"profile"`
	State     string `json:"state"`
	Requester string `json:"requester_kind"`
	NotAfter  string `json:"not_after"`
}

func certificates(t *testing.T, s *harness.Server, args ...string) []listed {
	t.Helper()
	var out struct{ Items []listed }
	if err := json.Unmarshal([]byte(s.MustCLI(t, append([]string{"cert", "list", "--json"}, args...)...).Stdout), &out); err != nil {
		t.Fatal(err)
	}
	return out.Items
}

// factory is a birth CA that the default label accepts.
func factory(t *testing.T, s *harness.Server) *testpki.Authority {
	t.Helper()
	ca := testpki.Root(t, "Factory birth CA")
	s.MustCLI(t, "birth-ca", "add", "default", testpki.WriteFile(t, filepath.Join(t.TempDir(), "birth-ca.pem"), ca.PEM()))
	return ca
}

// birthFlags are the agent's credential flags for a birth certificate.
func birthFlags(t *testing.T, leaf *testpki.Leaf) []string {
	t.Helper()
	dir := t.TempDir()
	return []string{"--birth-cert", testpki.WriteFile(t, filepath.Join(dir, "birth.pem"), leaf.PEM()),
		"--birth-key", testpki.WriteFile(t, filepath.Join(dir, "birth.key"), testpki.KeyPEM(t, leaf.Key))}
}

func TestDeviceToBroker(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write v1/devices/me/telemetry", "read cmd/{id}"}})
	witness := b.witness(t, "-t", "#")
	const topic = "v1/devices/me/telemetry"
	born, coded := filepath.Join(t.TempDir(), "born"), filepath.Join(t.TempDir(), "coded")
	b.agent(t, "SN-000001", born, topic, birthFlags(t, factory(t, s).Birth(t, "SN-000001"))...)
	b.agent(t, "SN-000002", coded, topic, "--code-file", s.CodeFile(t, "SN-000002"))
	harness.Eventually(t, patience, "telemetry of two certificates", func() bool { return len(serials(witness, topic)) == 2 })

	// The telemetry names the certificates that the server has issued to these two, for these reasons.
	var issued []string
	for device, kind := range map[string]string{"SN-000001": "birth", "SN-000002": "code"} {
		all := certificates(t, s, "--device", device)
		if len(all) != 1 || all[0].State != "issued" || all[0].Profile != "iot-device" || all[0].Requester != kind {
			t.Fatalf("certificates of %s: %+v, want one issued for a %s", device, all, kind)
		}
		issued = append(issued, all[0].Serial)
	}
	got := serials(witness, topic)
	slices.Sort(got)
	slices.Sort(issued)
	if !slices.Equal(got, issued) {
		t.Errorf("telemetry carries %v, issued were %v", got, issued)
	}
	for _, user := range []string{"u'SN-000001'", "u'SN-000002'"} {
		waitOutput(t, b.mosquitto, user)
	}

	// mosquitto acknowledges what it throws away, so what tells is that only the last of these arrives.
	for _, elsewhere := range []string{"v1/devices/me/attributes", "v1/devices/me/telemetry/x", "devices/SN-000001", "cmd/SN-000001", "SN-000001", "/"} {
		b.mustPublish(t, born, elsewhere, "forbidden")
	}
	b.mustPublish(t, born, topic, "allowed")
	waitOutput(t, witness, topic+" allowed")
	if strings.Contains(witness.Output(), "forbidden") {
		t.Errorf("a message outside the device's topics arrived:\n%s", witness.Output())
	}

	// A device reads its own commands and nothing else.
	reader := b.subscribeAs(t, born, "-t", "cmd/#", "-t", "#", "-t", "cmd/SN-000001")
	for _, message := range [][2]string{{"cmd/SN-000002", "not yours"}, {topic, "not yours"}, {"cmd/SN-000001", "yours"}} {
		harness.MustRun(t, harness.Program(t, "mosquitto_pub"), "-h", "127.0.0.1", "-p", harness.Port(t, b.services), "-t", message[0], "-m", message[1])
	}
	waitOutput(t, reader, "cmd/SN-000001 yours")
	if strings.Contains(reader.Output(), "not yours") || strings.Contains(reader.Output(), "certificate_serial") {
		t.Errorf("SN-000001 reads what is not its own:\n%s", reader.Output())
	}
}

// subscribeAs is mosquitto_sub with a device's files at the device listener.
func (b *broker) subscribeAs(t *testing.T, dir string, args ...string) *harness.Process {
	t.Helper()
	before := strings.Count(b.mosquitto.Output(), "Sending SUBACK")
	p := harness.Command{Path: harness.Program(t, "mosquitto_sub"), Args: append([]string{"-h", "localhost", "-p", harness.Port(t, b.devices), "-v",
		"--cafile", b.server.Trust(), "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem")}, args...)}.Start(t)
	harness.Eventually(t, patience, "the device to be subscribed", func() bool {
		return strings.Count(b.mosquitto.Output(), "Sending SUBACK") > before
	})
	return p
}

const (
	accessHead = `# rules of our own
user iotagent
topic read /#

pattern read shared/%u/news
`
	accessShared = `# rules of our own

pattern read shared/%u/news
`
	accessMark = "# devices: written by broker-bridge, changes here are lost\n"
)

func accessBlocks(ids ...string) string {
	var text strings.Builder
	for _, id := range ids {
		text.WriteString("user " + id + "\ntopic write /admin/" + id + "/attrs\n")
	}
	return text.String()
}

// TestAccessListFollowsDevices uses the rules of a dojot installation: the agent reads everything, a device writes its attributes.
func TestAccessListFollowsDevices(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "device", "remove", "device-1") // the one that `run` makes to try out
	b := startBroker(t, s, brokerOptions{topics: []string{"write /admin/{id}/attrs"}, head: accessHead})
	// The operator's listener takes the file with the head's users.
	b.mosquitto.Stop(t)
	appendText(t, b.path("conf.d/operator.conf"), "acl_file "+b.path("services.acl")+"\n")
	b.startMosquitto(t)
	b.waitReady(t)
	iotagent := b.witness(t, "-u", "iotagent", "-t", "/#")

	// Ids that are the beginning of others, and that differ in what looks alike.
	ids := []string{"dev", "dev.1", "dev1", "dev1-2", "dev10"}
	dirs := map[string]string{}
	for _, id := range ids {
		dirs[id] = enrollDevice(t, s, id)
	}
	b.wantAccess(t, ids...)
	for _, id := range ids {
		for _, other := range append(ids, "dev1/x", "+", "dev2") {
			if other != id && !strings.ContainsAny(other, "+#") {
				b.mustPublish(t, dirs[id], "/admin/"+other+"/attrs", "forbidden, from "+id)
			}
		}
		b.publishUntilSeen(t, iotagent, dirs[id], "/admin/"+id+"/attrs", "of "+id)
	}
	if strings.Contains(iotagent.Output(), "forbidden") {
		t.Errorf("a device wrote another one's attributes:\n%s", iotagent.Output())
	}

	// A device that is added can publish within two seconds, its enrollment included.
	began := time.Now()
	s.MustCLI(t, "device", "add", "new-one")
	dirs["new-one"] = enrollDevice(t, s, "new-one")
	b.publishUntilSeen(t, iotagent, dirs["new-one"], "/admin/new-one/attrs", "here I am")
	t.Logf("device add: published after %v, enrollment included", time.Since(began))
	if took := time.Since(began); took > follows {
		t.Errorf("an added device could publish after %v, want at most %v", took, follows)
	}
	b.wantAccess(t, append(ids, "new-one")...)

	// A device that is removed is out within two seconds, and exactly its lines are gone.
	b.subscribeAs(t, dirs["dev1"], "-t", "shared/dev1/news")
	session := clientOf(t, b, "dev1")
	began = time.Now()
	s.MustCLI(t, "device", "remove", "dev1")
	harness.Eventually(t, patience, "the removed device to be refused", func() bool { return b.publish(t, dirs["dev1"], "/admin/dev1/attrs", "still here").Code != 0 })
	t.Logf("device remove: refused after %v", time.Since(began))
	if took := time.Since(began); took > follows {
		t.Errorf("a removed device was refused after %v, want at most %v", took, follows)
	}
	waitOutput(t, b.mosquitto, "Client "+session+" been disconnected by administrative action")
	b.wantAccess(t, "dev", "dev.1", "dev1-2", "dev10", "new-one")
	for _, id := range []string{"dev", "dev1-2", "dev10"} {
		b.mustPublish(t, dirs[id], "/admin/"+id+"/attrs", "stays, "+id)
		waitOutput(t, iotagent, "/admin/"+id+"/attrs stays, "+id)
	}

	// Removed is not for ever: the id may be added again, with a certificate of its own.
	s.MustCLI(t, "device", "add", "dev1")
	again := enrollDevice(t, s, "dev1")
	b.publishUntilSeen(t, iotagent, again, "/admin/dev1/attrs", "back again")
	if b.publish(t, dirs["dev1"], "/admin/dev1/attrs", "x").Code == 0 {
		t.Error("the certificate from before the removal is accepted again")
	}
	b.wantAccess(t, ids[0], "dev.1", "dev1", "dev1-2", "dev10", "new-one")
}

// clientOf is the client id of the latest session of a user, from mosquitto's log ("... as CLIENT (p2, c1, k60, u'USER').").
func clientOf(t *testing.T, b *broker, user string) string {
	t.Helper()
	m := regexp.MustCompile(` as (\S+) \([^)]*u'`+regexp.QuoteMeta(user)+`'\)`).FindAllStringSubmatch(b.mosquitto.Output(), -1)
	if m == nil {
		t.Fatalf("mosquitto has seen no %s", user)
	}
	return m[len(m)-1][1]
}

// wantAccess compares both files, whole, once the bridge has caught up.
func (b *broker) wantAccess(t *testing.T, ids ...string) {
	t.Helper()
	blocks := accessMark + accessBlocks(ids...)
	harness.Eventually(t, patience, "the access list", func() bool { return readText(t, b.path("devices.acl")) == accessShared+blocks })
	if got := readText(t, b.path("services.acl")); got != accessHead+blocks {
		t.Errorf("services.acl:\n%s\nwant:\n%s", got, accessHead+blocks)
	}
}
