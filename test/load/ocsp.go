// OCSP: answers a second over connections that stay open, kept ones and ones that are signed for the request alone.

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/errgroup"
)

const (
	ocspTime         = 3 * time.Second
	ocspConnections  = 8
	ocspCertificates = 500

	// Bounds on two cores that the load shares with the server.
	leastKept   = 5000
	leastSigned = 1500
)

// loadOCSP asks about certificates that the server has issued, without a nonce and with one.
func loadOCSP(ctx context.Context, o options, s *server) error {
	issuer, serials, err := ocspSubjects(ctx, s.data)
	if err != nil {
		return err
	}
	fmt.Printf("\nOCSP, %d connections, %d certificates   answers/s   server CPU each\n", ocspConnections, len(serials))
	var rates []float64
	for _, kind := range []struct {
		name  string
		nonce bool
	}{{"kept", false}, {"signed for each request (nonce)", true}} {
		var requests [][]byte
		for _, serial := range serials {
			der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: serial}, issuer, nil)
			if err == nil && kind.nonce {
				der, err = addNonce(der)
			}
			if err != nil {
				return err
			}
			requests = append(requests, []byte(fmt.Sprintf("POST /ocsp/devices HTTP/1.1\r\nHost: %s\r\nContent-Type: application/ocsp-request\r\nContent-Length: %d\r\n\r\n%s", s.public, len(der), der)))
		}
		if _, err := askOCSP(ctx, s.public, requests, time.Second/2); err != nil {
			return fmt.Errorf("OCSP: %w", err)
		}
		before, err := s.cpu()
		if err != nil {
			return err
		}
		n, err := askOCSP(ctx, s.public, requests, ocspTime)
		if err != nil {
			return fmt.Errorf("OCSP: %w", err)
		}
		after, err := s.cpu()
		if err != nil {
			return err
		}
		rate := float64(n) / ocspTime.Seconds()
		rates = append(rates, rate)
		fmt.Printf("%-38s %10.0f %17v\n", kind.name, rate, ((after - before) / time.Duration(n)).Round(time.Microsecond))
	}
	if o.check && (rates[0] < leastKept || rates[1] < leastSigned) {
		return fmt.Errorf("a bound is missed: %.0f kept answers/s (at least %d), %.0f signed (at least %d)", rates[0], leastKept, rates[1], leastSigned)
	}
	return nil
}

// ocspSubjects reads the CA's certificate and serial numbers of what it issued.
func ocspSubjects(ctx context.Context, data string) (*x509.Certificate, []*big.Int, error) {
	content, err := os.ReadFile(filepath.Join(data, "ca", "devices.pem"))
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, nil, errors.New("devices.pem holds no certificate")
	}
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	path, err := program("est-server")
	if err != nil {
		return nil, nil, err
	}
	out, err := exec.CommandContext(ctx, path, "cert", "list", "--json", "--data", data).Output()
	if err != nil {
		return nil, nil, err
	}
	var list struct {
		Items []struct{ Serial, Issuer, State string }
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, nil, err
	}
	var serials []*big.Int
	for _, c := range list.Items {
		if serial, ok := new(big.Int).SetString(c.Serial, 16); ok && c.Issuer == "devices" && c.State == "issued" && len(serials) < ocspCertificates {
			serials = append(serials, serial)
		}
	}
	if len(serials) == 0 {
		return nil, nil, errors.New("no certificate to ask about")
	}
	return issuer, serials, nil
}

// askOCSP sends requests over open connections for a while and returns how many were answered with a response that is no error.
func askOCSP(ctx context.Context, address string, requests [][]byte, duration time.Duration) (int, error) {
	counts := make([]int, ocspConnections)
	var group errgroup.Group
	end := time.Now().Add(duration)
	for c := range ocspConnections {
		group.Go(func() error {
			connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			defer connection.Close()
			reader := bufio.NewReader(connection)
			for n := c; time.Now().Before(end); n++ {
				if _, err := connection.Write(requests[n%len(requests)]); err != nil {
					return err
				}
				answer, err := http.ReadResponse(reader, nil)
				if err != nil {
					return err
				}
				size, err := io.Copy(io.Discard, answer.Body)
				if err != nil || answer.StatusCode != http.StatusOK || size < 100 {
					return fmt.Errorf("answer of %d octets, status %d: %w", size, answer.StatusCode, err)
				}
				counts[c]++
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return sum, nil
}

// addNonce puts a nonce into a request that has no extensions.
func addNonce(der []byte) ([]byte, error) {
	var request struct{ TBS asn1.RawValue }
	if _, err := asn1.Unmarshal(der, &request); err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	value, err := asn1.Marshal(nonce)
	if err != nil {
		return nil, err
	}
	extensions, err := asn1.Marshal([]pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}, Value: value}})
	if err != nil {
		return nil, err
	}
	tagged, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, IsCompound: true, Bytes: extensions})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ TBS asn1.RawValue }{asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Join([][]byte{request.TBS.Bytes, tagged}, nil)}})
}
