// Scale: what a server with years of certificates in its database does more slowly than a new one. Two servers enroll in turns, so that what else
// the machine does falls on both.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	devicesOfStored = 5 // certificates for each device
	searches        = 200
)

func scale(ctx context.Context, o options, dir string, factory *factory) error {
	empty, err := startReal(ctx, filepath.Join(dir, "empty"), factory.path, false)
	if err != nil {
		return err
	}
	defer empty.stop()
	full, err := startReal(ctx, filepath.Join(dir, "full"), factory.path, false)
	if err != nil {
		return err
	}
	defer func() { full.stop() }()
	for _, s := range []*server{empty, full} {
		if _, err := drive(ctx, s, s.url, factory.devices("model", 2*o.parallel), o.parallel); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	full.stop()
	began := time.Now()
	if err := fill(ctx, filepath.Join(full.data, "est.db"), o.stored, max(1, o.stored/devicesOfStored), time.Now()); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	syscall.Sync() // the system would be busy writing it to disk for a while, which says nothing about a database of that size
	fmt.Printf("\n%d certificates of %d devices stored in %.0f s\n", o.stored, o.stored/devicesOfStored, time.Since(began).Seconds())
	began = time.Now()
	if err := full.start(ctx); err != nil {
		return err
	}
	startUp := time.Since(began)

	var emptySum, fullSum result
	for block := range o.blocks {
		devices := factory.devices(fmt.Sprintf("scale-%d", block), o.certificates/o.blocks)
		for _, turn := range []struct {
			*server
			sum *result
		}{{empty, &emptySum}, {full, &fullSum}} {
			r, err := drive(ctx, turn.server, turn.url, devices, o.parallel)
			if err != nil {
				return fmt.Errorf("%s: %w", turn.name, err)
			}
			turn.sum.add(r)
		}
	}
	fmt.Println("                     certificates/s      p50      p99   server CPU each      RSS")
	emptySum.print("empty", empty)
	fullSum.print("with these", full)
	rate := fullSum.rate() / emptySum.rate()
	slowest, err := full.search(ctx)
	if err != nil {
		return err
	}
	scrape, err := full.scrape()
	if err != nil {
		return err
	}
	fmt.Printf("\nenrollment rate, full : empty = %.2f : 1   start-up %.1f s   slowest search p99 %.0f ms   slowest scrape %.0f ms\n",
		rate, startUp.Seconds(), milliseconds(slowest), milliseconds(scrape))
	if o.check && (rate < 0.8 || startUp > 5*time.Second || slowest > 200*time.Millisecond || scrape > time.Second) {
		return errors.New("a bound is missed at scale: rate 0.80, start-up 5 s, search p99 200 ms, scrape 1 s")
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// search asks each form of listing again and again over admin.sock and returns the slowest form's p99.
func (s *server) search(ctx context.Context) (slowest time.Duration, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.data, "admin.sock"))
	}}}
	defer client.CloseIdleConnections()
	ask := func(path string) ([]byte, time.Duration, error) {
		began := time.Now()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin.sock/api/v1"+path, nil)
		if err != nil {
			return nil, 0, err
		}
		answer, err := client.Do(request)
		if err != nil {
			return nil, 0, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s: %s", path, answer.Status, body)
		}
		return body, time.Since(began), err
	}
	for _, form := range []string{
		"/certificates?", "/certificates?device=unit-0000100", "/certificates?state=issued", "/certificates?state=held", "/certificates?state=revoked", "/certificates?state=intended",
		"/certificates?expiring=7d", "/certificates?expiring=300d", "/certificates?profile=iot-device", "/certificates?profile=admin", "/certificates?profile=iot-device&state=revoked",
		"/devices?", "/devices?label=default", "/devices?state=generated", "/devices?state=revoked", "/devices?state=historical", "/codes?", "/codes?device=unit-0000100",
	} {
		var times []time.Duration
		after := ""
		for range searches {
			body, took, err := ask(form + after)
			if err != nil {
				return 0, err
			}
			times = append(times, took)
			var page struct{ Items []struct{ ID, Serial string } }
			if err := json.Unmarshal(body, &page); err != nil {
				return 0, err
			}
			after = ""
			if n := len(page.Items); n > 0 { // the next page, from the beginning again after the last
				after = "&after=" + url.QueryEscape(page.Items[n-1].Serial+page.Items[n-1].ID)
			}
			if n := len(page.Items); n > 0 && page.Items[n-1].Serial != "" {
				if _, took, err = ask("/certificates/" + page.Items[n-1].Serial); err != nil {
					return 0, err
				}
				times = append(times, took)
			}
		}
		slices.Sort(times)
		p99 := times[len(times)*99/100]
		fmt.Printf("  p50 %6.1f ms  p99 %6.1f ms  %s\n", milliseconds(times[len(times)/2]), milliseconds(p99), form)
		slowest = max(slowest, p99)
	}
	return slowest, nil
}

// scrape reads the metrics a few times and returns the longest time that it took.
func (s *server) scrape() (slowest time.Duration, err error) {
	for range 5 {
		began := time.Now()
		answer, err := http.Get("http://" + s.metrics + "/metrics")
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil {
			return 0, err
		}
		slowest = max(slowest, time.Since(began))
	}
	return slowest, nil
}
