// Package crash kills the built server at random moments while devices enroll, and checks from outside that nothing
// was lost and nothing given twice.
package crash
