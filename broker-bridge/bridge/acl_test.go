// The access control list: what it says, and what it must never say.

package bridge

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func mustTopics(t *testing.T, texts ...string) []Topic {
	t.Helper()
	var out []Topic
	for _, text := range texts {
		topic, err := ParseTopic(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, topic)
	}
	return out
}

// devices have no service.
func devices(ids ...string) map[string]string {
	m := map[string]string{}
	for _, id := range ids {
		m[id] = ""
	}
	return m
}

func TestACLGrammar(t *testing.T) {
	t.Parallel()
	head := "user iotagent\ntopic read /#\n"
	a, err := NewACL([]byte(head), mustTopics(t, "write /admin/{id}/attrs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := head + "# devices: written by broker-bridge, changes here are lost\nuser 24f6\ntopic write /admin/24f6/attrs\n" +
		"user 24f60\ntopic write /admin/24f60/attrs\n"
	if got := string(a.Services(devices("24f60", "24f6"))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := string(a.Devices(devices("24f6"))); strings.Contains(got, "iotagent") || strings.Contains(got, "/#") {
		t.Errorf("the device listener's list gives a service's rights:\n%s", got)
	}
}

func TestACLOfServices(t *testing.T) {
	t.Parallel()
	a, err := NewACL(nil, mustTopics(t, "write /{service}/{id}/attrs", "read d/{id}"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := string(a.Devices(map[string]string{
		"a": "admin", "b": "", "c": "{id}", "d": "a/b", "e": "+", "f": "#", "g": "x\nuser h", "i": "a b", "service": "id", "admin": "a",
	}))
	want := "# devices: written by broker-bridge, changes here are lost\nuser a\ntopic write /admin/a/attrs\ntopic read d/a\n" +
		"user admin\ntopic write /a/admin/attrs\ntopic read d/admin\nuser b\ntopic read d/b\nuser service\ntopic write /id/service/attrs\ntopic read d/service\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestACLHeadOfTheDeviceListener(t *testing.T) {
	t.Parallel()
	head := "# mine\npattern read fleet/%u/#\nuser iotagent\ntopic read /#\n\n# more\npattern read all\nuser Portal\ntopic readwrite x"
	a, err := NewACL([]byte(head), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "# mine\npattern read fleet/%u/#\n\n# more\npattern read all\n# devices: "
	if got := string(a.Devices(nil)); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant it to begin with\n%s", got, want)
	}
	if got := a.Services(nil); !bytes.HasPrefix(got, []byte(head+"\n")) {
		t.Errorf("head not verbatim:\n%s", got)
	}
	if a.Allows("portal") == nil || a.Allows("IOTAGENT") == nil {
		t.Error("a device may bear the name of a user of the head")
	}
}

func TestACLRefusesIDs(t *testing.T) {
	t.Parallel()
	a, err := NewACL([]byte("user iotagent\ntopic read #\n"), mustTopics(t, "write d/{id}/#"), []string{"mqtt.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{
		"", "a b", "a\nuser b", "a\r\nb", "a\tb", "#", "+", "a/b", "a+", "$SYS", "%u", "%c", "user x", "-a", ".a", "_a", "ä", "a\x00", "a:b",
		strings.Repeat("a", 65), strings.Repeat("a", 65536), "natal-canary-1", "NATAL-bridge", "Natal-x", "iotagent", "IoTAgent",
		"mqtt.example.com", "MQTT.example.COM",
	}
	for _, id := range bad {
		if err := a.Allows(id); codeOf(err) != CodeDeviceID {
			t.Errorf("%.40q: %v", id, err)
		}
	}
	if got, want := a.Devices(devices(bad...)), a.Devices(nil); !bytes.Equal(got, want) {
		t.Errorf("something of a bad id came through:\n%s", got)
	}
	for _, id := range []string{"a", "0", "SN-000001", "a.b_c-d", strings.Repeat("a", 64), "natal", "nata-l"} {
		if err := a.Allows(id); err != nil {
			t.Error(err)
		}
	}
}

func TestParseTopicRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "write", "write ", "WRITE a", "deny a", "write a\nuser b", "write a\x00", "write {ID}", "write {id", "write {id}}",
		"write $CONTROL/dynamic-security/v1", "write " + strings.Repeat("a", 2000)} {
		if topic, err := ParseTopic(text); err == nil {
			t.Errorf("%.40q became %+v", text, topic)
		}
	}
}

func TestACLHeadRefused(t *testing.T) {
	t.Parallel()
	for _, head := range []string{"user\n", "topics read x\n", "listener 1883\n", "topic read x\r\n", "topic\n", "user a\x00b\n"} {
		if _, err := NewACL([]byte(head), nil, nil); err == nil {
			t.Errorf("%q was taken", head)
		}
	}
}

func TestTenThousandDevicesRenderInUnderASecond(t *testing.T) {
	t.Parallel()
	a, err := NewACL(nil, mustTopics(t, "write /admin/{id}/attrs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, 10000)
	for i := range ids {
		ids[i] = fmt.Sprintf("device-%05d", i)
	}
	start := time.Now()
	if n := bytes.Count(a.Devices(devices(ids...)), []byte("user ")); n != len(ids) {
		t.Errorf("%d users", n)
	}
	if took := time.Since(start); took > promised(time.Second) {
		t.Errorf("took %s", took)
	}
}
