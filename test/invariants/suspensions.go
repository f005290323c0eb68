// INV-8, for devices that are suspended: no certificate of theirs counts, and what the suspension held is written down, so that its end is its exact inverse.

package invariants

type suspendedRow struct {
	Serial string `db:"serial"`
	Issuer string `db:"issuer"`
	Device string `db:"device"`
}

func (c *checker) checkSuspensions() {
	since := map[string]int64{}
	for _, e := range c.entities {
		if e.SuspendedAt == 0 {
			continue
		}
		since[e.ID] = e.SuspendedAt
		if e.State != "new" && e.State != "generated" {
			c.fail("INV-8", "device %s is %s and suspended", e.ID, e.State)
		}
		if len(c.entries["device_suspended "+e.ID]) == 0 {
			c.fail("INV-11", "device %s is suspended without an audit entry", e.ID)
		}
	}
	of := map[[2]string]*certificateRow{}
	for i := range c.certificates {
		r := &c.certificates[i]
		of[[2]string{r.Serial, r.Issuer}] = r
		if at := since[r.Device]; at > 0 && r.State == "issued" && r.NotAfter > at {
			c.fail("INV-8", "device %s is suspended and its certificate %s is issued", r.Device, r.Serial)
		}
	}
	for _, s := range c.suspended {
		r := of[[2]string{s.Serial, s.Issuer}]
		switch {
		case r == nil:
			c.fail("INV-8", "the suspension of %s holds certificate %s, which does not exist", s.Device, s.Serial)
		case since[s.Device] == 0:
			c.fail("INV-8", "certificate %s is held by a suspension, and device %s is not suspended", s.Serial, s.Device)
		case r.Device != s.Device && (r.RequesterKind != "canary" || r.Requester != s.Device):
			c.fail("INV-8", "the suspension of %s holds certificate %s of %s", s.Device, s.Serial, r.Device)
		}
	}
}
