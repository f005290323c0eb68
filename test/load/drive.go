// The devices: birth certificates and requests made beforehand, then one fresh TLS connection for each enrollment.

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/wire"
)

type factory struct {
	path string
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	next int64
}

func newFactory(path string) (*factory, error) {
	key, root, err := newRoot("Factory")
	if err != nil {
		return nil, err
	}
	return &factory{path: path, key: key, root: root, next: 1}, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600)
}

type device struct {
	birth tls.Certificate
	body  []byte // the request, base64
}

// devices makes n devices, each with a birth certificate, an operational key and a request. Making them is not measured.
func (f *factory) devices(prefix string, n int) []device {
	list := make([]device, n)
	for i := range list {
		id := fmt.Sprintf("%s-%d", prefix, i)
		birthKey, operational := mustKey(), mustKey()
		f.next++
		birth, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(f.next), Subject: pkix.Name{CommonName: id}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, f.root, birthKey.Public(), f.key)
		if err != nil {
			panic(err)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, operational)
		if err != nil {
			panic(err)
		}
		list[i] = device{birth: tls.Certificate{Certificate: [][]byte{birth}, PrivateKey: birthKey}, body: wire.EncodeBase64(csr)}
	}
	return list
}

func mustKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

type result struct {
	count   int
	elapsed time.Duration
	cpu     time.Duration
	times   []time.Duration
}

func (r *result) add(o result) {
	r.count, r.elapsed, r.cpu, r.times = r.count+o.count, r.elapsed+o.elapsed, r.cpu+o.cpu, append(r.times, o.times...)
}

func (r *result) rate() float64          { return float64(r.count) / r.elapsed.Seconds() }
func (r *result) cpuEach() time.Duration { return r.cpu / time.Duration(r.count) }

func (r *result) print(name string, s *server) {
	slices.Sort(r.times)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	fmt.Printf("%-20s %14.0f %6.1fms %6.1fms %15.3fms %5d MB\n", name, r.rate(), ms(r.times[len(r.times)/2]), ms(r.times[len(r.times)*99/100]), ms(r.cpuEach()), s.peak()>>20)
}

// drive enrolls all devices, some at a time, and measures what the server spent on them.
func drive(ctx context.Context, s *server, url string, devices []device, parallel int) (result, error) {
	before, err := s.cpu()
	if err != nil {
		return result{}, err
	}
	queue := make(chan device)
	times := make([][]time.Duration, parallel)
	errs := make([]error, parallel)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range parallel {
		wg.Go(func() {
			for d := range queue {
				if errs[w] != nil {
					continue
				}
				began := time.Now()
				errs[w] = enroll(ctx, s, url, d)
				times[w] = append(times[w], time.Since(began))
			}
		})
	}
	for _, d := range devices {
		queue <- d
	}
	close(queue)
	wg.Wait()
	r := result{count: len(devices), elapsed: time.Since(start), times: slices.Concat(times...)}
	after, err := s.cpu()
	if err != nil {
		return r, err
	}
	r.cpu = after - before
	for _, err := range errs {
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

func enroll(ctx context.Context, s *server, url string, d device) error {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.trust, Certificates: []tls.Certificate{d.birth}}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(d.body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/pkcs10")
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", answer.StatusCode, body)
	}
	der, err := wire.DecodeBase64(body)
	if err != nil {
		return err
	}
	certificates, err := wire.ParseCertsOnly(der)
	if err != nil {
		return err
	}
	if len(certificates) != 1 {
		return fmt.Errorf("%d certificates", len(certificates))
	}
	return nil
}
