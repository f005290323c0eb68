// Package crash kills the built server at random moments, restarts it and moves its clock while devices enroll and operators revoke and roll CAs
// over, and checks from outside that nothing was lost and nothing given twice. "make storm" runs the tests at full length.
package crash
