// INV-5: a code, a birth certificate and a generation of a device are good for one certificate.

package invariants

import (
	"fmt"
	"slices"
)

type codeRow struct {
	ID     string `db:"id"`
	Device string `db:"device"`
	State  string `db:"state"`
	Issuer string `db:"issuer"`
	Serial string `db:"serial"`
	UsedAt int64  `db:"used_at"`
}

type entityRow struct {
	ID         string `db:"id"`
	State      string `db:"state"`
	BoundKind  string `db:"bound_kind"`
	BoundTo    string `db:"bound_to"`
	Generation int64  `db:"generation"`

	SuspendedAt int64 `db:"suspended_at"`
}

func (c *checker) checkRights() {
	claims, first := map[string]string{}, map[string]string{}
	byCode := map[string][]*certificateRow{}
	for i := range c.certificates {
		r := &c.certificates[i]
		if other := claims[r.Claim]; other != "" {
			c.fail("INV-5", "certificates %s and %s use up the same: %s", other, r.Serial, r.Claim)
		}
		claims[r.Claim] = r.Serial
		var right string
		switch r.RequesterKind {
		case "code":
			byCode[r.Requester] = append(byCode[r.Requester], r)
			right = "code " + r.Requester
		case "birth":
			right = fmt.Sprintf("birth %s %s g%d", r.Requester, r.Device, r.Generation)
		case "bundle":
			right = fmt.Sprintf("bundle %s g%d", r.Device, r.Generation)
		default:
			continue
		}
		for _, once := range []string{right, fmt.Sprintf("device %s g%d", r.Device, r.Generation)} {
			if other := first[once]; other != "" {
				c.fail("INV-5", "%s: two certificates, %s and %s", once, other, r.Serial)
			}
			first[once] = r.Serial
		}
	}
	c.checkCodes(byCode)
	c.checkEntities(first)
	got := map[string]string{}
	for _, r := range c.received {
		if r.Credential == "" {
			continue
		}
		if other := got[r.Credential]; other != "" && other != hash(r.Certificate) {
			c.fail("INV-5", "%s: two different certificates were handed out", r.Credential)
		}
		got[r.Credential] = hash(r.Certificate)
	}
}

func (c *checker) checkCodes(made map[string][]*certificateRow) {
	known := map[string]bool{}
	for _, code := range c.codes {
		known[code.ID] = true
		list := made[code.ID]
		uses := len(c.entries["code_used "+code.ID])
		if code.State != "used" {
			if len(list) != 0 || uses != 0 || code.UsedAt != 0 || code.Serial != "" {
				c.fail("INV-5", "code %s is %s, with %d certificates and %d uses in the audit log", code.ID, code.State, len(list), uses)
			}
			continue
		}
		if len(list) != 1 || uses != 1 || code.UsedAt == 0 || list[0].Serial != code.Serial || list[0].Issuer != code.Issuer || list[0].Device != code.Device {
			c.fail("INV-5", "code %s of %s is used for %q: %d certificates, %d uses in the audit log", code.ID, code.Device, code.Serial, len(list), uses)
		}
	}
	for id := range made {
		if !known[id] {
			c.fail("INV-5", "certificate %s by code %s, which does not exist", made[id][0].Serial, id)
		}
	}
}

func (c *checker) checkEntities(first map[string]string) {
	for _, e := range c.entities {
		serial := first[fmt.Sprintf("device %s g%d", e.ID, e.Generation)]
		switch {
		case e.State == "new" && (serial != "" || e.BoundKind != ""):
			c.fail("INV-5", "device %s is new and has certificate %q, bound to %q", e.ID, serial, e.BoundTo)
		case e.State == "generated" && (serial == "" || e.BoundKind == "" || e.BoundTo == ""):
			c.fail("INV-5", "device %s is generated and has no certificate of generation %d", e.ID, e.Generation)
		case !slices.Contains([]string{"new", "generated", "revoked", "historical"}, e.State):
			c.fail("INV-5", "device %s is %q, which is no state", e.ID, e.State)
		}
	}
}
