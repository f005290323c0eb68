// Search: page by page each form gives exactly the certificates that it asks for, on both databases.

package ca_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func TestSearchPageByPage(t *testing.T) {
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		for n := range 9 {
			c := i.EnrollByCode(t, fmt.Sprintf("dev-%d", n), installation.Key(t))
			reason := map[int]string{1: "keyCompromise", 2: "superseded", 4: "keyCompromise", 5: "certificateHold"}[n]
			if reason == "" {
				continue
			}
			if _, err := i.CA.Revoke(ctx, "test", c.Serial, reason); err != nil {
				t.Fatal(err)
			}
		}
		all, err := i.CA.Certificates(ctx, ca.Filter{})
		if err != nil || len(all) < 12 {
			t.Fatalf("%d, %v", len(all), err)
		}
		within := i.Clock.Clock().Now().Add(366 * 24 * time.Hour)
		for name, c := range map[string]struct {
			filter ca.Filter
			fits   func(ca.Certificate) bool
		}{
			"all":                 {ca.Filter{}, func(ca.Certificate) bool { return true }},
			"of a device":         {ca.Filter{Device: "dev-3"}, func(c ca.Certificate) bool { return c.Device == "dev-3" }},
			"of a device, held":   {ca.Filter{Device: "dev-5", State: ca.Held}, func(c ca.Certificate) bool { return c.Device == "dev-5" }},
			"issued":              {ca.Filter{State: ca.Issued}, func(c ca.Certificate) bool { return c.State == ca.Issued }},
			"revoked":             {ca.Filter{State: ca.Revoked}, func(c ca.Certificate) bool { return c.State == ca.Revoked }},
			"held":                {ca.Filter{State: ca.Held}, func(c ca.Certificate) bool { return c.State == ca.Held }},
			"abandoned":           {ca.Filter{State: ca.Abandoned}, func(ca.Certificate) bool { return false }},
			"of a profile":        {ca.Filter{Profile: "iot-device"}, func(c ca.Certificate) bool { return c.Profile == "iot-device" }},
			"revoked, of another": {ca.Filter{Profile: "ca", State: ca.Revoked}, func(ca.Certificate) bool { return false }},
			"expiring": {ca.Filter{ExpireBefore: within}, func(c ca.Certificate) bool {
				return c.State == ca.Issued && c.NotAfter.Before(within)
			}},
			"expiring, of a profile": {ca.Filter{ExpireBefore: within, Profile: "iot-device"}, func(c ca.Certificate) bool {
				return c.State == ca.Issued && c.Profile == "iot-device"
			}},
		} {
			var want, got []string
			for _, one := range all {
				if c.fits(one) {
					want = append(want, one.Serial)
				}
			}
			c.filter.Limit = 2
			for {
				page, err := i.CA.Certificates(ctx, c.filter)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, one := range page {
					got = append(got, one.Serial)
				}
				if len(page) < 2 {
					break
				}
				c.filter.After = page[1].Serial
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %d certificates, want %d", name, len(got), len(want))
			}
		}
	})
}
