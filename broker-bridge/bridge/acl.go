// The ACL file: the operator's head, then one block for each device.
//
// Mosquitto knows a device by its CN alone and reads the file line by line, so two things must never happen: an
// id that is more than a name (a new line, a wildcard), and a name that already means somebody else.

package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// deviceID is what may stand in an ACL: the same names the registration authority gives.
var deviceID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// reservedPrefix begins the names that the product keeps for itself, in any case.
const reservedPrefix = "natal-"

// Topic is a rule that each device gets, with {id} for its id and {service} for its service. A device without a service does not get the
// rules that name one.
type Topic struct {
	Access  string // read, write or readwrite
	Pattern string // "v1/devices/me/telemetry", "/{service}/{id}/attrs"
}

// ParseTopic reads "write /{service}/{id}/attrs".
func ParseTopic(text string) (Topic, error) {
	access, pattern, ok := strings.Cut(strings.TrimSpace(text), " ")
	t := Topic{Access: access, Pattern: strings.TrimSpace(pattern)}
	if !ok || t.Pattern == "" {
		return t, fmt.Errorf("topic %q: want ACCESS TOPIC", text)
	}
	if !slices.Contains([]string{"read", "write", "readwrite"}, access) {
		return t, fmt.Errorf("topic %q: access is read, write or readwrite", text)
	}
	if strings.ContainsFunc(t.Pattern, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd }) || len(t.Pattern) > 1024 {
		return t, fmt.Errorf("topic %q: control character or too long", text)
	}
	if strings.HasPrefix(t.Pattern, "$CONTROL") {
		return t, fmt.Errorf("topic %q: no device may control the broker", text)
	}
	if rest := placeholders.Replace(t.Pattern); strings.ContainsAny(rest, "{}") {
		return t, fmt.Errorf("topic %q: only {id} and {service} are replaced", text)
	}
	return t, nil
}

var placeholders = strings.NewReplacer("{id}", "", "{service}", "")

// ACL renders access lists. The zero value is not usable; see NewACL.
type ACL struct {
	head     []byte // verbatim
	shared   []byte // the head without the blocks that belong to users
	users    []string
	topics   []Topic
	reserved map[string]bool // lower case
}

// NewACL takes the static head of the file (may be empty), the rules for each device and names that are no
// device. Users named in the head and names that begin with "natal-" are reserved as well.
func NewACL(head []byte, topics []Topic, reserved []string) (*ACL, error) {
	if bytes.ContainsRune(head, 0) || bytes.ContainsRune(head, '\r') {
		return nil, errors.New("ACL head: NUL or carriage return")
	}
	a := &ACL{head: withNewline(head), topics: topics, reserved: map[string]bool{}}
	for _, name := range reserved {
		a.reserved[strings.ToLower(name)] = true
	}
	if err := a.readHead(); err != nil {
		return nil, err
	}
	return a, nil
}

// readHead checks the head by mosquitto's grammar: a broker refuses to start on a line that it does not know.
func (a *ACL) readHead() error {
	inUser := false
	for n, line := range strings.SplitAfter(string(a.head), "\n") {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "user":
			name := strings.TrimSpace(rest)
			if name == "" {
				return fmt.Errorf("ACL head line %d: user without name", n+1)
			}
			inUser = true
			a.users = append(a.users, name)
			a.reserved[strings.ToLower(name)] = true
			continue
		case word == "topic" && rest != "":
			if inUser {
				continue
			}
		case word == "", strings.HasPrefix(line, "#"), word == "pattern" && rest != "":
		default:
			return fmt.Errorf("ACL head line %d: %q is not user, topic or pattern", n+1, word)
		}
		a.shared = append(a.shared, line...)
	}
	return nil
}

// Users lists the users that the head names.
func (a *ACL) Users() []string { return a.users }

// Allows returns a *Refusal (CodeDeviceID) if id must not stand in the file.
func (a *ACL) Allows(id string) error {
	if !deviceID.MatchString(id) {
		return refuse(CodeDeviceID, "%.80q is not a device id", id)
	}
	low := strings.ToLower(id)
	if strings.HasPrefix(low, reservedPrefix) || a.reserved[low] {
		return refuse(CodeDeviceID, "%q is reserved", id)
	}
	return nil
}

// AllowsService is Allows for a device's service: a name, or none.
func (a *ACL) AllowsService(service string) error {
	if service != "" && !deviceID.MatchString(service) {
		return refuse(CodeDeviceID, "%.80q is not the name of a service", service)
	}
	return nil
}

// Devices is the file for the device listener. Users of the head get nothing here: a listener on which a name is all
// that is known must not give a service's rights to a certificate that happens to bear its name.
// devices are the services ("" for none) by device id.
func (a *ACL) Devices(devices map[string]string) []byte { return a.render(a.shared, devices) }

// Services is the file for a listener of the operator's own services: the whole head verbatim, then the devices.
func (a *ACL) Services(devices map[string]string) []byte { return a.render(a.head, devices) }

func (a *ACL) render(head []byte, devices map[string]string) []byte {
	sorted := slices.Sorted(maps.Keys(devices))
	var b bytes.Buffer
	b.Grow(len(head) + 64 + len(sorted)*(16+48*len(a.topics)))
	b.Write(head)
	b.WriteString("# devices: written by broker-bridge, changes here are lost\n")
	for _, id := range sorted {
		service := devices[id]
		if a.Allows(id) != nil || a.AllowsService(service) != nil {
			continue
		}
		fill := strings.NewReplacer("{id}", id, "{service}", service)
		b.WriteString("user ")
		b.WriteString(id)
		b.WriteByte('\n')
		for _, t := range a.topics {
			if service == "" && strings.Contains(t.Pattern, "{service}") {
				continue
			}
			b.WriteString("topic ")
			b.WriteString(t.Access)
			b.WriteByte(' ')
			b.WriteString(fill.Replace(t.Pattern))
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func withNewline(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return append(slices.Clone(b), '\n')
	}
	return b
}
